// Package stdio is the host's side of a run's standard streams: files that are handed over, pipes,
// and what copies between these and a caller's readers and writers.
package stdio

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// Config is what a run's streams are connected to: nil is /dev/null, an *os.File goes to the run as
// it is, and for anything else there is a pipe and a goroutine that copies.
type Config struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer  // one pipe for both if they are the same
	Extra          []*os.File // the run's descriptors from 3 on
	Last           *os.File   // after those, if not nil; it is closed once the run has it

	Limit    int64  // of bytes of both outputs together, which are then copied even to files; 0: none
	Exceeded func() // is called once, when the run writes more

	Delay time.Duration // how long Finish waits for writers of the output; 0: as long as they take

	// Lull is for how long outputs are left in their pipes, which usually hold 64 KiB, before
	// they are read. Commands that are short have ended by then, and nothing that wakes
	// readers up in between delays their end; those that write more wait. 0: none.
	Lull time.Duration
}

// Streams is the host's side of a run's standard streams.
type Streams struct {
	child   []*os.File   // for the run, in the order of their numbers
	close   []*os.File   // those of child that are closed once the run has them
	in      func() error // copies the input, if it is not a file
	mine    []io.Closer  // ends that copies use
	outputs []output
	ends    Ends

	limit *outputLimit
	delay time.Duration
	lull  time.Duration
	later *time.Timer // begins to copy the outputs
	begun sync.Once   // that
	wait  sync.WaitGroup
	mu    sync.Mutex
	err   error
}

// output is a pipe that is copied.
type output struct {
	from *PipeReader
	copy func() error
}

// Open opens what the config asks for. What it opened must be closed: with CloseChild and Finish,
// or with Close if the run did not start.
func Open(c Config) (*Streams, error) {
	s := &Streams{delay: c.Delay, lull: c.Lull}
	if c.Limit != 0 {
		s.limit = &outputLimit{left: c.Limit, exceeded: c.Exceeded}
	}
	err := s.open(&c)
	s.child = append(s.child, c.Extra...)
	if c.Last != nil {
		s.give(c.Last)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	for _, f := range s.child {
		letReopen(f)
	}
	return s, nil
}

// Child returns the files for the run, in the order of their numbers.
func (s *Streams) Child() []*os.File { return s.child }

func (s *Streams) open(c *Config) error {
	if err := s.input(c.Stdin); err != nil {
		return err
	}
	if err := s.output(c.Stdout); err != nil {
		return err
	}
	if c.Stderr != nil && SameWriter(c.Stdout, c.Stderr) {
		s.child = append(s.child, s.child[1])
		return nil
	}
	return s.output(c.Stderr)
}

func (s *Streams) null(flag int) error {
	f, err := openNull(flag)
	if err != nil {
		return err
	}
	s.give(f)
	return nil
}

func (s *Streams) give(f *os.File) {
	s.child = append(s.child, f)
	s.close = append(s.close, f)
}

func (s *Streams) input(r io.Reader) error {
	if r == nil {
		return s.null(os.O_RDONLY)
	}
	if _, ok := r.(Pipe); ok {
		return s.inputPipe()
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
	s.in = func() error {
		_, err := io.Copy(pw, r)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed) {
			err = nil // the run did not want all of it
		}
		return errors.Join(err, ignoreClosed(pw.Close()))
	}
	return nil
}

func (s *Streams) output(w io.Writer) error {
	if w == nil && s.limit == nil {
		return s.null(os.O_WRONLY)
	}
	if p, ok := w.(Pipe); ok {
		return s.outputPipe(p)
	}
	if f, ok := w.(*os.File); ok && s.limit == nil {
		s.child = append(s.child, f)
		return nil
	}
	if w == nil {
		w = io.Discard
	}
	from, pw, err := openPipe()
	if err != nil {
		return err
	}
	s.give(pw)
	s.mine = append(s.mine, from)
	if s.limit != nil {
		w = &limitedWriter{w, s.limit}
	}
	s.outputs = append(s.outputs, output{from, func() error {
		_, err := io.Copy(w, from)
		// With the reading end closed, a run whose output nobody takes gets
		// SIGPIPE, as under os/exec.
		return errors.Join(err, ignoreClosed(from.Close()))
	}})
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Start begins to copy, the outputs after a lull.
func (s *Streams) Start() {
	if s.in != nil {
		go s.copied(s.in) // may block in the caller's Read for ever
	}
	live := func() { s.begun.Do(func() { s.copy(true) }) }
	if s.lull > 0 && len(s.outputs) > 0 {
		s.later = time.AfterFunc(s.lull, live)
	} else {
		live()
	}
}

// copy begins to copy the outputs: those that hold something, if nothing is written any more.
func (s *Streams) copy(live bool) {
	for _, o := range s.outputs {
		if live || o.from.Holds() {
			o.from.Begin()
			s.wait.Go(func() { s.copied(o.copy) })
		}
	}
}

func (s *Streams) copied(copy func() error) {
	if err := copy(); err != nil {
		s.mu.Lock()
		if s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
	}
}

// CloseChild closes the run's ends, which it has or will never have. It may be called again.
func (s *Streams) CloseChild() {
	for _, f := range s.close {
		f.Close()
	}
	s.close = nil
}

// Close closes all that Open opened: for a run that did not start.
func (s *Streams) Close() {
	s.CloseChild()
	s.closeMine()
	s.ends.Close()
}

func (s *Streams) closeMine() {
	for _, f := range s.mine {
		f.Close()
	}
}

// Finish waits for the output, no longer than the delay, ends the input, and reports whether all
// output was written. err is the first error of a copy. It is called when nothing of the run lives
// any more, but the pipes may still have writers: a descriptor can be sent to another run.
func (s *Streams) Finish() (inTime bool, err error) {
	if s.later != nil {
		s.later.Stop()
	}
	s.begun.Do(func() { s.copy(false) })
	for _, o := range s.outputs {
		o.from.End()
	}
	inTime = s.waitCopies()
	s.closeMine() // a copy whose Write returns later finds nothing more to read
	s.mu.Lock()
	defer s.mu.Unlock()
	return inTime, s.err
}

// waitCopies waits until all output has been written, and reports whether it was within the delay.
func (s *Streams) waitCopies() bool {
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

// SameWriter reports whether both are one comparable value.
func SameWriter(a, b io.Writer) bool {
	defer func() { _ = recover() }() // comparing values of an uncomparable type
	return a == b
}
