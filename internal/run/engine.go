//go:build linux

// Package run makes runs and follows them to their end: it finds or boots their cell, prepares
// them, hands over the command, watches the limits that no cgroup has, and decides what the end
// was.
package run

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/hint"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/spec"
)

// Engine owns what the runs of a process have together: cells, the runs that are alive and those
// that wait for a command, and what was found out about the machine.
type Engine struct {
	gathering sync.Mutex
	machine   *compile.Machine // nil before it is asked for
	files     hostFiles
	libraries libraries

	cells    cells
	ahead    sync.WaitGroup // see assembleAhead
	live     set[*Run]
	reserves set[*reserve] // those that may have runs
	networks set[*gateway.Network]
	runs     atomic.Uint64 // names their cgroups

	// preparing is held by one reserve at a time, while it prepares a run and during the pause
	// before.
	preparing sync.Mutex
}

// cells are the default ones, one for each outer configuration in use.
type cells struct {
	mu  sync.Mutex
	all map[cell.Config]*cell.Cell
}

// NewEngine returns an engine without a cell. The first run boots one.
func NewEngine() *Engine { return &Engine{} }

// Machine returns what is known of this machine.
func (e *Engine) Machine() *compile.Machine {
	e.gathering.Lock()
	defer e.gathering.Unlock()
	if e.machine == nil || e.machine.Starved {
		e.machine = &compile.Machine{Facts: host.Gather()}
	}
	return e.machine
}

// HostFiles returns what HostRootfs shows of the host's /etc and /var now.
func (e *Engine) HostFiles() *compile.HostFiles { return e.files.now(e.Machine()) }

// now returns the machine with what may change while this process lives.
func (e *Engine) now(c *spec.Spec) *compile.Machine {
	m := *e.Machine()
	if c.Root.ShowsHost() {
		m.Files = e.HostFiles()
	}
	if c.Root.Rootfs.Parts == spec.OwnProgram {
		m.Libraries = e.libraries.get()
	}
	if c.Namespaces.Network == spec.NetworkHost {
		m.Resolv = host.Resolv()
	}
	return &m
}

// libraries are this program's own, by their place in a root.
type libraries struct {
	mu    sync.Mutex
	found bool
	all   map[string]string
}

func (l *libraries) get() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.found {
		var err error
		l.all, err = cell.OwnLibraries()
		l.found = err == nil // else cell.OwnFile returns the reason, or the next run looks again
	}
	return l.all
}

// Boot boots a cell, which must be ended with End.
func (e *Engine) Boot(config cell.Config) (*cell.Cell, error) {
	if config.HostIDs && os.Geteuid() != 0 {
		return nil, &fault.SetupError{Stage: "cell", Err: errors.New("WithoutUserNamespace needs root: others get their other namespaces from one of users"),
			Hint: "run this program as root, or leave the option out"}
	}
	// libcontainer would find out too, but leave a dead child behind.
	if remedy, sure, why := hint.NoUserNamespaces(); why != nil && sure && !config.HostIDs {
		return nil, &fault.SetupError{Stage: "cell", Err: why, Hint: remedy}
	}
	c, err := cell.Boot(config)
	if err != nil {
		return nil, &fault.SetupError{Stage: "cell", Err: err, Hint: hint.Boot(err, config.HostIDs)}
	}
	return c, nil
}

// Cell returns the cell that the options ask for. It boots a default cell that is not there.
func (e *Engine) Cell(c *spec.Spec) (*cell.Cell, error) {
	want := cell.Config{HostNetwork: c.Namespaces.Network == spec.NetworkHost, HostIDs: c.Namespaces.HostIDs, CgroupParent: c.Limits.Parent}
	if given, ok := c.Place.Cell.(*cell.Cell); ok {
		return given, checkCell(given.Config(), want, c.Namespaces.Network)
	}
	e.cells.mu.Lock()
	defer e.cells.mu.Unlock()
	if have := e.cells.all[want]; have != nil {
		if !have.Dying() {
			return have, nil
		}
		_ = e.End(context.Background(), have) // clean up after one that was lost
		delete(e.cells.all, want)
	}
	ahead := e.assembleAhead(&c.Root)
	booted, err := e.Boot(want)
	ahead(booted)
	if err != nil {
		return nil, err
	}
	if e.cells.all == nil {
		e.cells.all = map[cell.Config]*cell.Cell{}
	}
	e.cells.all[want] = booted
	return booted, nil
}

// checkCell returns an error if a cell that was given is of another kind than the options want.
func checkCell(have, want cell.Config, network spec.Network) error {
	switch {
	case have.HostNetwork != want.HostNetwork:
		return fault.Option("WithCell", "the cell was made for another network than %v: use CellNetwork", network)
	case have.HostIDs && !want.HostIDs:
		return fault.Option("WithCell", "the cell was made with CellWithoutUserNamespace: use WithoutUserNamespace, or another cell")
	case want.HostIDs && !have.HostIDs:
		return fault.Option("WithCell", "the cell was made for runs with a user namespace, not for WithoutUserNamespace: use CellWithoutUserNamespace")
	case want.CgroupParent != "" && have.CgroupParent != want.CgroupParent:
		return fault.Option("WithCell", "the cell's cgroup parent is %q, WithCgroupParent says %q", have.CgroupParent, want.CgroupParent)
	}
	return nil
}

// End closes a cell. It thaws paused runs, which could not die otherwise, and gives up runs that
// wait for a command: those of now, and those that come to wait meanwhile.
func (e *Engine) End(ctx context.Context, c *cell.Cell) error {
	e.letEnd(c)
	closed := make(chan struct{})
	defer close(closed)
	go func() {
		for {
			select {
			case <-closed:
				return
			case <-time.After(10 * time.Millisecond):
				e.letEnd(c)
			}
		}
	}()
	err := c.Close(ctx)
	e.leaveNetworks(c)
	return err
}

func (e *Engine) letEnd(c *cell.Cell) {
	for _, r := range e.live.list() {
		if r.cell == c {
			r.letEnd()
		}
	}
	for _, v := range e.reserves.list() {
		v.drop(c)
	}
}

// Shutdown ends the default cells.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.cells.mu.Lock()
	defer e.cells.mu.Unlock()
	var errs []error
	for config, c := range e.cells.all {
		if err := e.End(ctx, c); err != nil {
			errs = append(errs, fmt.Errorf("sandbox: shutdown: %w", err))
		}
		delete(e.cells.all, config)
	}
	e.ahead.Wait() // which does not take long once its cells have ended
	e.files.close()
	cell.CloseOwn()
	return errors.Join(errs...)
}

// set holds things from when they are added until they are removed. It is safe for concurrent use.
type set[T comparable] struct {
	mu  sync.Mutex
	all map[T]struct{}
}

func (s *set[T]) add(t T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[T]struct{}{}
	}
	s.all[t] = struct{}{}
}

func (s *set[T]) remove(t T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, t)
}

func (s *set[T]) list() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.all))
}
