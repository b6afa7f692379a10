// Command jobs runs shell commands, one per line of its input, several at a time, each in a
// sandbox, and all of them within one budget.
package main

import (
	"bufio"
	"context"
	"expvar"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/pool"
)

// metrics counts ends in expvar, for /debug/vars. A Prometheus counter is as short.
type metrics struct{ ends *expvar.Map }

func (m metrics) RunEnded(r pool.Record) {
	if r.Result == nil {
		m.ends.Add("not started", 1)
		return
	}
	m.ends.Add(r.Result.Reason.String(), 1)
}

var ends = metrics{expvar.NewMap("ends")}

// drain runs the jobs until there are no more, and prints the output of each.
func drain(ctx context.Context, jobs <-chan string, size int, out io.Writer, logger *slog.Logger) (pool.Stats, error) {
	p := pool.New(sandbox.New(sandbox.WithTimeout(10*time.Second), sandbox.WithOutputLimit(sandbox.MiB)), size,
		pool.Memory(512*sandbox.MiB), pool.Observe(ends), pool.Log(logger))
	var printing sync.Mutex
	var running sync.WaitGroup
	for range size {
		running.Go(func() {
			for job := range jobs {
				r, w := io.Pipe()
				go func() {
					_, err := p.Run(ctx, sandbox.WithCommand("sh", "-c", job), sandbox.WithStdout(w), sandbox.WithStderr(w))
					w.CloseWithError(err)
				}()
				text, err := io.ReadAll(r)
				printing.Lock()
				fmt.Fprintf(out, "$ %s\n%s", job, text)
				if err != nil {
					fmt.Fprintln(out, err)
				}
				printing.Unlock()
			}
		})
	}
	running.Wait()
	return p.Stats(), p.Close(ctx)
}

func main() {
	size := flag.Int("n", runtime.NumCPU(), "how many jobs at a time")
	flag.Parse()
	jobs := make(chan string)
	go func() {
		defer close(jobs)
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			jobs <- lines.Text()
		}
	}()
	stats, err := drain(context.Background(), jobs, *size, os.Stdout, slog.Default())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d served, failed: %v, half of them took less than %v\n", stats.Served, stats.Failed, stats.Run.P50)
}
