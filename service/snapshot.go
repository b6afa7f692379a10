package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// Snapshot is the content of a directory that was made once, such as an empty database, of which
// each instance of a service gets a copy. It is safe for concurrent use.
type Snapshot struct {
	dst   string
	bytes int64
	maker *sandbox.Sandbox

	turn  chan struct{} // holds one while somebody uses made and ahead
	made  *sandbox.Scratch
	ahead *sandbox.Scratch // a copy for the next instance
}

// NewSnapshot describes a snapshot of the directory dst, with up to the given number of bytes, as
// the sandbox's command leaves it: that is executed, with an empty and writable file system there,
// when the first instance needs the snapshot, and must exit with status 0. Copies are made by
// sandbox.Scratch.CopyIn, so all of it belongs to an instance's user, who may always read and write
// it, and an ordinary user's snapshot has no file that its owner may not read. It stays in memory
// until Close, or until nothing refers to it, and so does one copy, which is made ahead for the
// next instance, once the one before is ready. It needs what sandbox.NewScratch and
// sandbox.WithScratch need.
//
//	initdb := sandbox.New(sandbox.WithCommand("initdb", "-D", "/data/db"))
//	data := service.NewSnapshot("/data", 256*sandbox.MiB, initdb)
//	db := service.New("db", postgres, service.From(data), service.Port(5432))
func NewSnapshot(dst string, bytes int64, s *sandbox.Sandbox) *Snapshot {
	return &Snapshot{dst: dst, bytes: bytes, maker: s, turn: make(chan struct{}, 1)}
}

// Close gives the snapshot's memory back. Instances keep their copies; the next one that needs the
// snapshot makes it anew.
func (s *Snapshot) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	var errs []error
	for _, scratch := range []*sandbox.Scratch{s.made, s.ahead} {
		if scratch != nil {
			errs = append(errs, scratch.Close())
		}
	}
	s.made, s.ahead = nil, nil
	return errors.Join(errs...)
}

// copy returns a copy for an instance, which the caller must close. The next one is made once the
// instance is ready, as both would take the same CPU.
func (s *Snapshot) copy(ctx context.Context, i *Instance) (*sandbox.Scratch, error) {
	select { // a copy takes what CPU there is: several would take no less
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fault.NotStarted(ctx)
	}
	var err error
	if s.made == nil {
		i.prepares(Progress{What: "snapshot of " + s.dst})
		if s.made, err = s.prepare(ctx); err != nil {
			return nil, err
		}
	}
	c := s.ahead
	if s.ahead = nil; c == nil {
		if c, err = s.copyNow(); err != nil {
			return nil, err
		}
	}
	go func() {
		select {
		case <-i.ready:
		case <-i.ended:
		}
		s.makeAhead()
	}()
	return c, nil
}

// makeAhead makes the copy for the next instance, unless it is there. If it can't, the next
// instance will report why.
func (s *Snapshot) makeAhead() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.made != nil && s.ahead == nil {
		s.ahead, _ = s.copyNow()
	}
}

// copyNow makes a copy of what was made.
func (s *Snapshot) copyNow() (*sandbox.Scratch, error) {
	c, err := sandbox.NewScratch(s.bytes)
	if err != nil {
		return nil, err
	}
	if err := c.CopyIn(s.made.FS(), "."); err != nil {
		c.Close()
		return nil, fmt.Errorf("copying the snapshot of %s: %w", s.dst, err)
	}
	return c, nil
}

// prepare executes the command.
func (s *Snapshot) prepare(ctx context.Context) (made *sandbox.Scratch, err error) {
	if s.maker == nil {
		return nil, fault.Option("service.NewSnapshot", "the sandbox is nil: make one by sandbox.New")
	}
	if made, err = sandbox.NewScratch(s.bytes); err != nil {
		return nil, err
	}
	log := newLog(lastLines * maxLine)
	out, errs := &stream{to: log}, &stream{to: log, stderr: true}
	if _, err = s.maker.With(sandbox.WithScratch(s.dst, made), sandbox.WithStdout(out), sandbox.WithStderr(errs)).Run(ctx); err != nil {
		made.Close()
		out.end()
		errs.end()
		return nil, &Error{"snapshot of " + s.dst, 0, err, log.last(0, lastLines)}
	}
	return made, nil
}
