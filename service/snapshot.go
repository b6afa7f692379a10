package service

import (
	"context"
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

	turn chan struct{} // holds one while somebody uses made
	made *sandbox.Scratch
}

// NewSnapshot describes a snapshot of the directory dst, with up to the given number of bytes, as
// the sandbox's command leaves it: that is executed, with an empty and writable file system there,
// when the first instance needs the snapshot, and must exit with status 0. Copies are made by
// sandbox.Scratch.CopyIn, so a file's owner may always read and write it, and an ordinary user's
// snapshot has no file that its owner may not read. It stays in memory until Close, or until
// nothing refers to it. It needs what sandbox.NewScratch and sandbox.WithScratch need.
//
//	initdb := sandbox.New(sandbox.WithCommand("initdb", "-D", "/data/db"))
//	data := service.NewSnapshot("/data", 256*sandbox.MiB, initdb)
//	db := service.New("db", postgres, service.From(data), service.Port(5432))
func NewSnapshot(dst string, bytes int64, s *sandbox.Sandbox) *Snapshot {
	return &Snapshot{dst: dst, bytes: bytes, maker: s, turn: make(chan struct{}, 1)}
}

// From gives each instance a copy of the snapshot, in memory and as large at most, at the directory
// where it was made. It stays through restarts, and is gone with the instance. Several calls add
// up.
func From(s *Snapshot) Option {
	return func(c *config) { c.from = append(c.from[:len(c.from):len(c.from)], s) }
}

// Close gives the snapshot's memory back. Instances keep their copies; the next one that needs the
// snapshot makes it anew.
func (s *Snapshot) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	made := s.made
	if s.made = nil; made == nil {
		return nil
	}
	return made.Close()
}

// copy returns a copy, which the caller must close.
func (s *Snapshot) copy(ctx context.Context) (*sandbox.Scratch, error) {
	select { // a copy takes what CPU there is: several would take no less
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fault.NotStarted(ctx)
	}
	var err error
	if s.made == nil {
		if s.made, err = s.prepare(ctx); err != nil {
			return nil, err
		}
	}
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
		return nil, &Error{"snapshot of " + s.dst, err, log.last(lastLines)}
	}
	return made, nil
}
