package main

import (
	"bytes"
	"context"
	"image"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// bomb returns an image of a few kilobytes that decodes to 288 MB.
func bomb(t *testing.T) []byte {
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, image.NewGray(image.Rect(0, 0, 12000, 24000))))
	require.Less(t, b.Len(), 1_000_000)
	return b.Bytes()
}

// TestService sends real images and other data to the service at the same time.
func TestService(t *testing.T) {
	workers := thumbnail.Workers(2)
	defer workers.Close()
	server := httptest.NewServer(service(workers))
	defer server.Close()
	post := func(body []byte, width string) (int, []byte) {
		response, err := http.Post(server.URL+"/?width="+width, "", bytes.NewReader(body))
		require.NoError(t, err)
		defer response.Body.Close()
		out, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, out
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	var all sync.WaitGroup
	for _, name := range []string{"video-001.jpeg", "video-001.progressive.jpeg", "video-001.png", "video-001.gif", "video-005.gray.png"} {
		body, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "src/image/testdata", name))
		require.NoError(t, err)
		for range 5 {
			all.Go(func() {
				code, out := post(body, "75")
				require.Equal(t, http.StatusOK, code, "%s: %s", name, out)
				small, err := png.Decode(bytes.NewReader(out))
				require.NoError(t, err)
				require.Equal(t, image.Pt(75, 51), small.Bounds().Size(), name)
			})
		}
		all.Go(func() {
			code, out := post(body[:len(body)/2], "75")
			require.Equal(t, http.StatusUnprocessableEntity, code, "half of %s: %s", name, out)
		})
	}
	all.Go(func() {
		code, out := post(bomb(t), "75")
		require.Equal(t, http.StatusUnprocessableEntity, code)
		require.Contains(t, string(out), "out of memory")
	})
	all.Go(func() {
		code, _ := post(nil, "0")
		require.Equal(t, http.StatusBadRequest, code)
	})
	all.Wait()
}
