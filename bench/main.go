//go:build linux

// Command bench measures what a run costs compared to other ways to start a program, on this
// machine, and writes docs/BENCHMARKS.md and its charts. Subjects take turns, so that other load on
// the machine affects all of them. The ratios carry over to other machines.
//
//	cd bench && go run .
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cellkit/sandbox"
)

func main() {
	if beChild() || beClientOrServer() || beOfQueues() {
		return
	}
	rounds := flag.Int("rounds", 200, "runs of each subject and program")
	out := flag.String("out", "../docs", "directory of the report")
	only := flag.Bool("networks", false, "measure private networks alone, and print the figures")
	queued := flag.Bool("queue", false, "measure queues alone, and print the figures")
	booted := flag.Bool("first", false, "measure first runs of a process alone, and print the figures")
	flag.Parse()
	measure := func() error {
		return inPlace(func(dir string, p *place) error { return run(dir, p, *rounds, *out) })
	}
	if *only {
		measure = func() error { return firstError(networks(*rounds), sandbox.Shutdown(context.Background())) }
	}
	if *queued {
		measure = func() error { return firstError(queues(*rounds), sandbox.Shutdown(context.Background())) }
	}
	if *booted {
		measure = func() error {
			return inPlace(func(_ string, p *place) error {
				first, runc := firstRuns(p, *rounds, 50*time.Millisecond)
				fmt.Printf("first run of a process: %s; runc: %s\n", ms(first), ms(runc))
				return nil
			})
		}
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// inPlace measures in a directory that it makes.
func inPlace(measure func(dir string, p *place) error) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it needs root, as runc does")
	}
	install("gcc", "libc6-dev", "python3", "bubblewrap", "runc", "crun")
	dir, err := os.MkdirTemp("", "sandbox-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := newPlace(dir)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, sandbox.Shutdown(context.Background())) }()
	return measure(dir, p)
}

func run(dir string, p *place, rounds int, out string) (err error) {
	r := &report{began: time.Now(), command: "cd bench && go run . -rounds " + fmt.Sprint(rounds)}
	progress("first run of a process")
	r.first, r.firstRunc = firstRuns(p, max(rounds/3, 5), 0) // first: measured at the end it took twice as long
	for _, w := range workloads {
		list := p.working(w)
		progress("%s: %d rounds of %s", w.name, rounds, names(list))
		r.latencies = append(r.latencies, latencies(w.name, list, rounds, 0))
		if w.name == workloads[0].name {
			const pause = 50 * time.Millisecond
			progress("%s: %d rounds with pauses", w.name, rounds/4)
			r.latencies = append(r.latencies, latencies(fmt.Sprintf("%s, now and then: %v after the one before", w.name, pause), list, max(rounds/4, 5), pause))
		}
		for _, atOnce := range []int{1, 2, 4, 16} {
			if w.name != workloads[0].name {
				break
			}
			progress("%s: %d at a time", w.name, atOnce)
			r.throughputs = append(r.throughputs, throughput(list, atOnce, rounds))
		}
	}
	progress("functions")
	if r.functions, err = functions(dir, rounds); err != nil {
		return err
	}
	progress("programs that import the module")
	if r.cgo, r.module, err = imports(dir, max(2*rounds, 400)); err != nil {
		return err
	}
	progress("memory of live runs")
	if r.live, r.waiting, err = liveMemory(p, 200); err != nil {
		return err
	}
	for _, g := range growths {
		progress("growth: %s", g.name)
		c, err := g.measure(p, max(rounds/2, 21))
		if err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		r.growths = append(r.growths, c)
	}
	return r.write(out)
}

func progress(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// install installs missing Debian packages. A peer that can't be installed is left out.
func install(packages ...string) {
	var missing []string
	for _, p := range packages {
		if exec.Command("dpkg", "-s", p).Run() != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return
	}
	progress("installing %s", strings.Join(missing, " "))
	_ = exec.Command("apt-get", "update").Run()
	for _, p := range missing {
		if out, err := exec.Command("apt-get", "install", "-y", "--no-install-recommends", p).CombinedOutput(); err != nil {
			progress("%s: %v\n%s", p, err, out)
		}
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
