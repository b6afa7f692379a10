//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellkit/sandbox"
)

// figures are the results of one subject.
type figures struct {
	name        string
	median, p99 time.Duration
	cpu         time.Duration // of the whole machine, per run
	rate        float64       // runs per second
}

type table struct {
	title string
	rows  []figures
}

func names(list []subject) string {
	var all []string
	for _, s := range list {
		all = append(all, s.name)
	}
	return strings.Join(all, ", ")
}

// timed prepares the subject, pauses, and measures a run.
func (s *subject) timed(pause time.Duration) time.Duration {
	if s.ready != nil {
		must(s.ready())
	}
	time.Sleep(pause)
	began := time.Now()
	must(s.run())
	return time.Since(began)
}

// inTurn measures the subjects in turn, with a pause before each run. It returns the times of each.
// The order is another one in each round, as what one leaves to the background slows the next.
func inTurn(list []subject, rounds int, pause time.Duration) [][]time.Duration {
	times := make([][]time.Duration, len(list))
	order := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		for _, i := range order.Perm(len(list)) {
			times[i] = append(times[i], list[i].timed(pause))
		}
	}
	return times
}

// latencies measures the subjects in turn, and then many runs of each for the CPU time.
func latencies(title string, list []subject, rounds int, pause time.Duration) table {
	times := inTurn(list, rounds, pause)
	t := table{title: title}
	for i, s := range list {
		before := busy()
		for range rounds {
			s.timed(0)
		}
		used := busy() - before
		t.rows = append(t.rows, figures{name: s.name, median: quantile(times[i], 0.5), p99: quantile(times[i], 0.99), cpu: used / time.Duration(rounds)})
	}
	return t
}

// throughput has the subjects take turns of a hundred runs, several at a time. It leaves those out
// of which only one can run in a place.
func throughput(list []subject, atOnce, rounds int) table {
	const block = 100
	list = slices.DeleteFunc(slices.Clone(list), func(s subject) bool { return s.alone })
	spent := make([][]time.Duration, len(list))
	for range max(rounds/block, 3) {
		for i, s := range list {
			began := time.Now()
			var next atomic.Int64
			var wait sync.WaitGroup
			for range atOnce {
				wait.Go(func() {
					for next.Add(1) <= block {
						must(s.run())
					}
				})
			}
			wait.Wait()
			spent[i] = append(spent[i], time.Since(began))
		}
	}
	t := table{title: fmt.Sprint(atOnce)}
	for i, s := range list {
		t.rows = append(t.rows, figures{name: s.name, rate: block / quantile(spent[i], 0.5).Seconds()})
	}
	return t
}

// firstRuns returns the median of runs that boot a cell, and that of runc in turn with them, or 0
// without runc, with a pause before each.
func firstRuns(p *place, rounds int, pause time.Duration) (first, runc time.Duration) {
	s := p.sandboxed(workloads[0].argv)
	list := []subject{{name: own, ready: func() error { return sandbox.Shutdown(context.Background()) },
		run: func() error { _, err := s.Run(context.Background()); return err }}}
	if other := (subject{name: "runc", run: p.runtime("runc", workloads[0])}); other.run() == nil {
		list = append(list, other)
	}
	times := inTurn(list, rounds, pause)
	if len(times) > 1 {
		runc = quantile(times[1], 0.5)
	}
	return quantile(times[0], 0.5), runc
}

// crowd is a set of runs that live until they are ended.
type crowd []*sandbox.Process

func (p *place) crowd(n int) (crowd, error) {
	s := p.sandboxed([]string{"/programs/pause"}, sandbox.WithPIDs(4))
	var c crowd
	for range n {
		live, err := s.Start(context.Background())
		if err != nil {
			c.end()
			return nil, err
		}
		c = append(c, live)
	}
	return c, nil
}

func (c crowd) end() {
	for _, p := range c {
		_ = p.Kill()
	}
	for _, p := range c {
		_, _ = p.Wait()
	}
}

// liveMemory returns how much less memory is available for each live run, and for each that waits
// for its command. It takes the most of several rounds, because a round may reuse memory of those
// before.
func liveMemory(p *place, n int) (live, waiting int64, err error) {
	s := p.sandboxed(workloads[0].argv)
	if _, err := s.Run(context.Background()); err != nil { // boots the cell
		return 0, 0, err
	}
	var lives, waits []int64
	for range 5 {
		settle()
		before := available()
		c, err := p.crowd(n)
		if err != nil {
			return 0, 0, err
		}
		lives = append(lives, (before-available())/int64(n))
		c.end()
		settle()
		before = available()
		prepared := s.With(sandbox.WithPrepared(n))
		if err := prepared.Prepare(context.Background()); err != nil {
			return 0, 0, err
		}
		waits = append(waits, (before-available())/int64(n))
		runtime.KeepAlive(prepared)
		runtime.GC() // ends those that wait
	}
	return slices.Max(lives), slices.Max(waits), nil
}

// growth is how the time of a run depends on a size.
type growth struct {
	name    string
	sizes   []int
	prepare func(p *place, size int) (s *sandbox.Sandbox, undo func(), err error)
}

type curve struct {
	name   string
	sizes  []int
	median []time.Duration
}

var growths = []growth{
	{"live runs", []int{0, 10, 100, 1000}, func(p *place, size int) (*sandbox.Sandbox, func(), error) {
		c, err := p.crowd(size)
		return p.sandboxed(workloads[0].argv), c.end, err
	}},
	{"binds of a sandbox", []int{1, 10, 50, 99}, func(p *place, size int) (*sandbox.Sandbox, func(), error) {
		opts := []sandbox.Option{sandbox.WithTmpfs("/many", sandbox.MiB)}
		for i := range size {
			opts = append(opts, sandbox.WithReadOnlyBind(p.work, fmt.Sprintf("/many/%d", i)))
		}
		return p.sandboxed(workloads[0].argv, opts...), func() {}, nil
	}},
	{"MiB of heap of the host process", []int{10, 1000, 4000, 8000}, func(p *place, size int) (*sandbox.Sandbox, func(), error) {
		if available() < int64(size+500)<<20 {
			return nil, nil, nil
		}
		heap := make([]byte, size<<20)
		for i := 0; i < len(heap); i += 4096 {
			heap[i] = 1
		}
		return p.sandboxed(workloads[0].argv), func() { runtime.KeepAlive(heap); heap = nil; runtime.GC() }, nil
	}},
	{"other sandboxes in use", []int{1, 10, 100, 500}, func(p *place, size int) (*sandbox.Sandbox, func(), error) {
		for i := range size {
			if _, err := p.sandboxed(workloads[0].argv, sandbox.WithEnv(fmt.Sprintf("N=%d", i)), sandbox.WithTmpfs(fmt.Sprintf("/t%d", i), sandbox.MiB)).Run(context.Background()); err != nil {
				return nil, nil, err
			}
		}
		return p.sandboxed(workloads[0].argv), func() {}, nil
	}},
	{"runs before", []int{0, 1000, 10_000}, func(p *place, size int) (*sandbox.Sandbox, func(), error) {
		must(sandbox.Shutdown(context.Background()))
		s := p.sandboxed(workloads[0].argv)
		for range size {
			if _, err := s.Run(context.Background()); err != nil {
				return nil, nil, err
			}
		}
		return s, func() {}, nil
	}},
}

func (g growth) measure(p *place, rounds int) (curve, error) {
	c := curve{name: g.name}
	for _, size := range g.sizes {
		s, undo, err := g.prepare(p, size)
		if err != nil {
			return c, err
		}
		if s == nil {
			progress("growth: %s: %d is more than this machine has", g.name, size)
			continue
		}
		var times []time.Duration
		for i := range rounds + 5 {
			began := time.Now()
			_, err := s.Run(context.Background())
			must(err)
			if i >= 5 { // its template exists
				times = append(times, time.Since(began))
			}
		}
		undo()
		settle()
		c.sizes, c.median = append(c.sizes, size), append(c.median, quantile(times, 0.5))
	}
	return c, nil
}

// settle waits until the machine is almost idle: removals happen in the background.
func settle() {
	const look = 500 * time.Millisecond
	for range 60 {
		before := busy()
		time.Sleep(look)
		if busy()-before < look/10 {
			return
		}
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// busy returns the CPU time that all processors have spent, from hundredths of seconds:
// proc_stat(5).
func busy() (sum time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	must(err)
	for i, f := range strings.Fields(strings.SplitN(string(b), "\n", 2)[0])[1:] {
		var ticks int64
		_, _ = fmt.Sscan(f, &ticks)
		if i != 3 && i != 4 && i < 7 { // idle and waiting for I/O are not work
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

// available returns the available memory in bytes: proc_meminfo(5).
func available() int64 {
	f, err := os.Open("/proc/meminfo")
	must(err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

// must ends the program: what was measured so far would mean nothing.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
