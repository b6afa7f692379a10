//go:build linux

package pool_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
)

// At most two at a time, and all of them in half a gigabyte.
func ExampleNew() {
	base := sandbox.New(sandbox.WithTimeout(20 * time.Second))
	p := pool.New(base, 2, pool.Memory(512*sandbox.MiB))
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			_, err := p.Run(context.Background(), sandbox.WithCommand("sh", "-c", fmt.Sprintf("exit %d", i/4)))
			if err != nil {
				fmt.Println(err)
			}
		})
	}
	all.Wait()
	stats := p.Stats()
	fmt.Println(stats.Served, stats.Failed, p.Close(context.Background()))
	// Output:
	// sandbox: exit status 1
	// 4 map[exited:1] <nil>
}

// failures prints the runs that did not exit with status 0.
type failures struct{}

func (failures) RunEnded(r pool.Record) {
	if r.Err != nil {
		fmt.Printf("run %d, %s: %v\n", r.ID, r.Command[0], r.Err)
	}
}

// When a run has ended, an observer is called, and the run is logged.
func ExampleObserve() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	p := pool.New(sandbox.New(sandbox.WithTimeout(20*time.Second)), 1, pool.Observe(failures{}), pool.Log(logger))
	_, _ = p.Run(context.Background(), sandbox.WithCommand("true"))
	_, _ = p.Run(context.Background(), sandbox.WithCommand("false"))
	fmt.Println(p.Close(context.Background()))
	// Output:
	// run 2, false: sandbox: exit status 1
	// <nil>
}
