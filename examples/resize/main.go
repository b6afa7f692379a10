// Command resize is an HTTP service that makes thumbnails of images. Hostile images attack
// decoders, so these run in processes of their own, which see no file, no network and no secret of
// this one, and have limits of memory and time.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	_ "image/gif"
	_ "image/jpeg"
	"image/png"
	"io"
	"log"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/image/draw"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
)

type request struct {
	Width int
	Image io.Reader
}

var thumbnail = function.New("thumbnail", func(_ context.Context, in request) ([]byte, error) {
	full, _, err := image.Decode(in.Image)
	if err != nil {
		return nil, err
	}
	size := full.Bounds().Size()
	small := image.NewRGBA(image.Rect(0, 0, in.Width, max(1, size.Y*in.Width/max(1, size.X))))
	draw.CatmullRom.Scale(small, small.Bounds(), full, full.Bounds(), draw.Src, nil)
	var out bytes.Buffer
	err = png.Encode(&out, small)
	return out.Bytes(), err
}, sandbox.WithMemory(128*sandbox.MiB), sandbox.WithTimeout(10*time.Second), function.MessageLimit(32*sandbox.MiB))

// service answers a POST of an image with a thumbnail, 200 pixels wide or as ?width= says.
func service(workers *function.Workers[request, []byte]) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		width := 200
		if s := r.URL.Query().Get("width"); s != "" {
			width, _ = strconv.Atoi(s)
		}
		if r.Method != http.MethodPost || width < 1 || width > 2000 {
			http.Error(w, "POST an image to /?width=1..2000", http.StatusBadRequest)
			return
		}
		out, err := workers.Call(r.Context(), request{width, http.MaxBytesReader(w, r.Body, 64*sandbox.MiB)})
		var bad *function.Error
		switch {
		case err == nil:
			w.Header().Set("Content-Type", "image/png")
			_, _ = w.Write(out)
		case errors.As(err, &bad), errors.Is(err, sandbox.ErrOutOfMemory), errors.Is(err, sandbox.ErrTimeout):
			http.Error(w, "this image can't be resized: "+err.Error(), http.StatusUnprocessableEntity)
		default:
			log.Print(err)
			http.Error(w, "something went wrong", http.StatusInternalServerError)
		}
	})
}

func main() {
	address := flag.String("listen", "localhost:8080", "where to listen")
	flag.Parse()
	workers := thumbnail.Workers(runtime.NumCPU(), function.MaxCalls(100))
	defer workers.Close()
	fmt.Printf("curl --data-binary @image.jpg 'http://%s/?width=100' >small.png\n", *address)
	log.Fatal(http.ListenAndServe(*address, service(workers)))
}
