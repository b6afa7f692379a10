package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// stdio is the host's side of a run's standard streams.
type stdio struct {
	child   []*os.File // for the run, in the order of their numbers
	close   []*os.File // those of child that are closed once the run has them
	copies  []func() error
	mine    []*os.File // ends that copies use
	outputs []*pipeReader

	limit *outputLimit
	delay time.Duration // of WithWaitDelay
	wait  sync.WaitGroup
	mu    sync.Mutex
	err   error
}

// newStdio opens what the options ask for. exceeded is called once when the
// run writes more than it may.
func newStdio(c *config, exceeded func()) (*stdio, error) {
	s := &stdio{delay: c.delay()}
	if c.outputLimit != nil {
		s.limit = &outputLimit{left: *c.outputLimit, exceeded: exceeded}
	}
	if err := s.open(c); err != nil {
		s.closeChild()
		s.closeMine()
		return nil, err
	}
	s.child = append(s.child, c.extra...)
	for _, f := range s.child {
		letReopen(f)
	}
	return s, nil
}

func (s *stdio) open(c *config) error {
	if err := s.input(c.stdin); err != nil {
		return err
	}
	if err := s.output(c.stdout); err != nil {
		return err
	}
	if c.stderr != nil && sameWriter(c.stdout, c.stderr) {
		s.child = append(s.child, s.child[1])
		return nil
	}
	return s.output(c.stderr)
}

func (s *stdio) null(flag int) error {
	f, err := openNull(flag)
	if err != nil {
		return err
	}
	s.give(f)
	return nil
}

func (s *stdio) give(f *os.File) {
	s.child = append(s.child, f)
	s.close = append(s.close, f)
}

func (s *stdio) input(r io.Reader) error {
	if r == nil {
		return s.null(os.O_RDONLY)
	}
	if f, ok := r.(*os.File); ok {
		s.child = append(s.child, f)
		return nil
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	s.give(pr)
	s.mine = append(s.mine, pw)
	s.copies = append(s.copies, func() error {
		_, err := io.Copy(pw, r)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed) {
			err = nil // the run did not want all of it
		}
		return errors.Join(err, ignoreClosed(pw.Close()))
	})
	return nil
}

func (s *stdio) output(w io.Writer) error {
	if w == nil && s.limit == nil {
		return s.null(os.O_WRONLY)
	}
	if f, ok := w.(*os.File); ok && s.limit == nil {
		s.child = append(s.child, f)
		return nil
	}
	if w == nil {
		w = io.Discard
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	s.give(pw)
	s.mine = append(s.mine, pr)
	if s.limit != nil {
		w = &limitedWriter{w, s.limit}
	}
	read := &pipeReader{f: pr}
	s.outputs = append(s.outputs, read)
	s.copies = append(s.copies, func() error {
		_, err := io.Copy(w, read)
		// With the reading end closed, a run whose output nobody takes gets
		// SIGPIPE, as under os/exec.
		return errors.Join(err, ignoreClosed(pr.Close()))
	})
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// start begins to copy. The first of the copies is the input's, if there is one.
func (s *stdio) start(hasInput bool) {
	for i, copy := range s.copies {
		if i == 0 && hasInput {
			go s.copied(copy) // may block in the caller's Read for ever
			continue
		}
		s.wait.Go(func() { s.copied(copy) })
	}
}

func (s *stdio) copied(copy func() error) {
	if err := copy(); err != nil {
		s.mu.Lock()
		if s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
	}
}

func (s *stdio) closeChild() {
	for _, f := range s.close {
		f.Close()
	}
	s.close = nil
}

func (s *stdio) closeMine() {
	for _, f := range s.mine {
		f.Close()
	}
}

// finish waits for the output, no longer than the delay unless that is 0, and ends the input.
// Nothing of the run lives any more, but the pipes may still have writers: a descriptor can be sent
// to another run.
func (s *stdio) finish() error {
	for _, o := range s.outputs {
		o.end()
	}
	inTime := s.waitCopies()
	s.closeMine() // a copy whose Write returns later finds nothing more to read
	s.mu.Lock()
	defer s.mu.Unlock()
	if !inTime {
		return errors.Join(s.err, ErrWaitDelay)
	}
	return s.err
}

// waitCopies waits until all output has been written, and reports whether it was within the delay.
func (s *stdio) waitCopies() bool {
	if s.delay == 0 || len(s.outputs) == 0 {
		s.wait.Wait()
		return true
	}
	copied := make(chan struct{})
	go func() {
		s.wait.Wait()
		close(copied)
	}()
	timer := time.NewTimer(s.delay)
	defer timer.Stop()
	select {
	case <-copied:
		return true
	case <-timer.C:
		return false
	}
}

// sameWriter tells whether both are one comparable value.
func sameWriter(a, b io.Writer) bool {
	defer func() { _ = recover() }() // comparing values of an uncomparable type
	return a == b
}

// outputLimit counts the bytes of both outputs.
type outputLimit struct {
	mu       sync.Mutex
	left     int64
	exceeded func()
}

// take returns how many of n bytes may pass.
func (l *outputLimit) take(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int64(n) > l.left {
		if l.exceeded != nil {
			l.exceeded()
			l.exceeded = nil
		}
		n = int(l.left)
	}
	l.left -= int64(n)
	return n
}

// limitedWriter passes on what the limit lets through and swallows the rest.
type limitedWriter struct {
	w     io.Writer
	limit *outputLimit
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if n := l.limit.take(len(p)); n > 0 {
		if _, err := l.w.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// output keeps what is written to it. A copy that WithWaitDelay has cut off may still be writing
// when it is read.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, b...)
	return len(b), nil
}

// bytes returns what was written so far; later writes do not change it.
func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clip(o.b)
}

// prefixSuffix keeps the first and the last n bytes of what is written to it, as output does.
type prefixSuffix struct {
	n              int
	mu             sync.Mutex
	prefix, suffix []byte
	skipped        int64
}

func (p *prefixSuffix) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := len(b)
	if room := p.n - len(p.prefix); room > 0 {
		k := min(room, len(b))
		p.prefix = append(p.prefix, b[:k]...)
		b = b[k:]
	}
	p.suffix = append(p.suffix, b...)
	if over := len(p.suffix) - p.n; over > 0 {
		p.skipped += int64(over)
		p.suffix = append(p.suffix[:0], p.suffix[over:]...)
	}
	return total, nil
}

func (p *prefixSuffix) bytes() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.skipped == 0 {
		return slices.Concat(p.prefix, p.suffix)
	}
	return slices.Concat(p.prefix, fmt.Appendf(nil, "\n... omitting %d bytes ...\n", p.skipped), p.suffix)
}
