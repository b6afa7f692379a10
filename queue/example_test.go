//go:build linux

package queue_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/pool"
	"github.com/cellkit/sandbox/queue"
)

// openHere opens a queue of this process, with a worker that runs until the returned function is
// called.
func openHere(ctx context.Context) (*queue.Queue, func()) {
	dir, err := os.MkdirTemp("", "queue")
	if err != nil {
		log.Fatal(err)
	}
	q, err := queue.Open(ctx, "", queue.Dir(dir))
	if err != nil {
		log.Fatal(err)
	}
	p := pool.New(sandbox.New(sandbox.WithMemory(128*sandbox.MiB)), 2)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- queue.NewWorker(q, p, queue.Slots(2), queue.TakeServices("127.0.0.1")).Run(ctx) }()
	return q, func() {
		cancel()
		if err := <-ended; err != nil {
			log.Print(err)
		}
		if err := p.Close(context.Background()); err != nil {
			log.Print(err)
		}
		q.Close()
		os.RemoveAll(dir)
	}
}

// Words is how often each word is in a text.
type Words map[string]int

// A package-level variable, as for functions here, which workers of this program are to run.
var count = function.New("count", func(_ context.Context, text string) (Words, error) {
	if text == "" {
		return nil, fmt.Errorf("there is no text")
	}
	words := Words{}
	for _, w := range strings.Fields(text) {
		words[w]++
	}
	return words, nil
}, sandbox.WithMemory(128*sandbox.MiB), sandbox.WithTimeout(20*time.Second))

func init() { queue.Register(count) }

// A function of this program is called where there is a worker of the same build: here, in this
// process; with the URL of a cluster, on any machine that runs this program.
func ExampleCall() {
	ctx := context.Background()
	q, stop := openHere(ctx)
	defer stop()

	words, err := queue.Call(ctx, q, count, "to be or not to be")
	fmt.Println(words, err)
	_, err = queue.Call(ctx, q, count, "")
	fmt.Println(err)
	// Output:
	// map[be:2 not:1 or:1 to:2] <nil>
	// there is no text
}

// A worker that is asked to end finishes what it runs, if that takes no longer than a minute.
func ExampleWorker_Drain() {
	asked, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "queue")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	q, err := queue.Open(ctx, "", queue.Dir(dir))
	if err != nil {
		log.Fatal(err)
	}
	defer q.Close()
	p := pool.New(sandbox.New(), 2)
	defer p.Close(ctx)

	w := queue.NewWorker(q, p, queue.Slots(2))
	context.AfterFunc(asked, func() { w.Drain(time.Minute) })
	id, err := q.Submit(ctx, queue.Task{Command: []string{"/bin/sh", "-c", "echo begun; sleep 0.5; echo done"}})
	if err != nil {
		log.Print(err)
	}
	go func() {
		for range q.Logs(ctx, id, 0) {
			break // it has begun
		}
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}()
	fmt.Println(w.Run(ctx))
	res, err := q.Wait(ctx, id)
	if err != nil {
		log.Print(err)
	}
	fmt.Printf("%s", res.Stdout)
	// Output:
	// <nil>
	// begun
	// done
}

// A service goes on until it is stopped, with as many replicas as are asked for.
func ExampleQueue_Serve() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	q, stop := openHere(ctx)
	defer stop()

	ticker := queue.Service{Name: "ticker", Task: queue.Task{Command: []string{"/bin/sh", "-c", "while :; do echo tick; sleep 1; done"}}, Replicas: 2}
	if err := q.Serve(ctx, ticker); err != nil {
		log.Print(err)
	}
	for s, err := range q.Services(ctx) {
		if err != nil {
			log.Print(err)
		}
		for _, r := range s.Replicas {
			fmt.Println(s.Name, r.State, r.Healthy)
		}
	}
	fmt.Println(q.StopService(ctx, "ticker"))
	// Output:
	// ticker running true
	// ticker running true
	// <nil>
}
