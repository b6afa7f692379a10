package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/compose"
)

// held is the command that up -d executes in the background, with its own arguments. It is no flag,
// as a later one could take it back, and processes would start others without an end.
const held = "held"

// up starts a project, and holds it until it ends.
func up(e *env, args []string) (int, error) {
	f := e.upFlags()
	only, err := e.parse(args, 0, "")
	if err != nil {
		return 0, err
	}
	var b *background
	if e.name == held {
		if b, err = inBackground(); err != nil {
			return 0, err
		}
		e.err = b
	}
	status, err := hold(e, args, only, f, b)
	if b != nil {
		b.ready(err)
	}
	return status, err
}

// hold starts a project and holds it until it ends, if b is not nil for those in the background.
func hold(e *env, args, only []string, f *upFlags, b *background) (int, error) {
	opts, err := f.options(only)
	if err != nil {
		return 0, err
	}
	progress := &progress{out: e.err, last: map[string]string{}}
	opts = append(opts, compose.Observe(progress.show))
	if f.allow != nil {
		opts = append(opts, compose.Allow(sandbox.NetworkObserver(progress.refused)))
	}
	p, err := e.load(opts...)
	if err != nil {
		return 0, err
	}
	if f.detach && b == nil {
		return 0, detach(e, args)
	}
	h, err := listen(p.Name())
	if err != nil {
		return 0, err
	}
	defer h.close()
	r := p.Up(e.ctx)
	h.serve(r)
	if !f.quiet && b == nil {
		var printed sync.WaitGroup
		printed.Go(func() { printLines(e.out, r) })
		defer printed.Wait()
	}
	if err := r.Ready(); err != nil {
		if ended := r.Close(); ended != nil {
			err = ended
		}
		if e.ctx.Err() != nil { // it was to end
			err = nil
		}
		return 0, err
	}
	if b != nil {
		b.ready(nil)
	}
	return 0, r.Err()
}

// printLines prints what services write until the project has ended.
func printLines(w io.Writer, r *compose.Running) {
	width := 0
	for _, s := range r.Status() {
		width = max(width, len(s.Name()))
	}
	for line := range r.Follow(context.Background()) {
		if err := printLine(w, width, line); err != nil {
			return
		}
	}
}

func printLine(w io.Writer, width int, line compose.Line) error {
	if line.Missed > 0 {
		if _, err := fmt.Fprintf(w, "%-*s | (%d lines are missing)\n", width, line.Name(), line.Missed); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%-*s | %s\n", width, line.Name(), line.Line.String())
	return err
}

// progress prints a line when a service is in another state, and from time to time while its image
// is fetched.
type progress struct {
	mu      sync.Mutex
	out     io.Writer
	last    map[string]string // what was printed of each service
	fetched time.Time         // when was printed how far that is
	told    int               // connections that were refused
}

const (
	fetchPause = time.Second
	maxRefused = 20 // the services choose what they ask for
)

func (p *progress) show(e compose.Event) {
	text := string(e.State)
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := e.Fetch; e.State == compose.Fetching && f.Count > 0 {
		if time.Since(p.fetched) < fetchPause {
			return
		}
		p.fetched = time.Now()
		text = fmt.Sprintf("fetching layer %d of %d", f.Index+1, f.Count)
		if f.Total > 0 {
			text += fmt.Sprintf(", %d %%", 100*f.Bytes/f.Total)
		}
	}
	name := e.Name()
	if p.last[name] == text || e.State == compose.Pending {
		return
	}
	if p.last[name] = text; e.State == compose.Waiting {
		text += ": " + e.Err.Error()
	}
	fmt.Fprintf(p.out, "%s: %s\n", name, text)
}

// refused prints what a service may not reach.
func (p *progress) refused(c sandbox.Conn) {
	if c.Verdict != sandbox.Refused || c.Published {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told++; p.told > maxRefused {
		return
	}
	to := c.Name
	if to == "" {
		to = c.Address.String()
	}
	fmt.Fprintf(p.out, "%s: refused %q, port %d: %v\n", c.Run, to, c.Port, c.Err)
}
