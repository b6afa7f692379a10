package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

type cellImpl = *cell.Cell

func newCell(config cellConfig) (*Cell, error) {
	c, err := boot(cell.Config{HostNetwork: config.network == NetworkHost, HostIDs: config.hostIDs, CgroupParent: config.cgroupParent})
	if err != nil {
		return nil, err
	}
	return &Cell{c}, nil
}

func (c *Cell) close(ctx context.Context) error { return end(ctx, c.impl) }

// end closes a cell. Paused runs of it are thawed, or they could not die, and runs that wait for a command
// given up: those of now, and those that get there meanwhile.
func end(ctx context.Context, c *cell.Cell) error {
	live.thaw(c)
	dropPrepared(c)
	closed := make(chan struct{})
	defer close(closed)
	go func() {
		for {
			select {
			case <-closed:
				return
			case <-time.After(10 * time.Millisecond):
				live.thaw(c)
				dropPrepared(c)
			}
		}
	}()
	return c.Close(ctx)
}

func boot(config cell.Config) (*cell.Cell, error) {
	if config.HostIDs && os.Geteuid() != 0 {
		return nil, &SetupError{Stage: "cell", Err: errors.New("WithoutUserNamespace needs root: others get their other namespaces from one of users"),
			Hint: "run this program as root, or leave the option out"}
	}
	// libcontainer would find out too, and leave a dead child behind.
	if remedy, sure, why := noUserNamespaces("/proc/sys", os.Geteuid() == 0); why != nil && sure && !config.HostIDs {
		return nil, &SetupError{Stage: "cell", Err: why, Hint: remedy}
	}
	c, err := cell.Boot(config)
	if err != nil {
		return nil, bootError(err, config.HostIDs)
	}
	return c, nil
}

// cells are the default ones, one for each outer configuration in use.
var cells struct {
	mu  sync.Mutex
	all map[cell.Config]*cell.Cell
}

// cellOf is the cell that was given, nil for a default one.
func cellOf(p *spec.Place) *Cell {
	c, _ := p.Cell.(*Cell)
	return c
}

// findCell returns the cell that the options ask for.
func findCell(c *spec.Spec) (*cell.Cell, error) {
	want := cell.Config{HostNetwork: c.Namespaces.Network == spec.NetworkHost, HostIDs: c.Namespaces.HostIDs, CgroupParent: c.Limits.Parent}
	if given := cellOf(&c.Place); given != nil {
		have := given.impl.Config()
		switch {
		case have.HostNetwork != want.HostNetwork:
			return nil, fault.Option("WithCell", "the cell was made for another network than %v: use CellNetwork", Network(c.Namespaces.Network))
		case have.HostIDs && !want.HostIDs:
			return nil, fault.Option("WithCell", "the cell was made with CellWithoutUserNamespace: use WithoutUserNamespace, or another cell")
		case want.HostIDs && !have.HostIDs:
			return nil, fault.Option("WithCell", "the cell was made for runs with a user namespace, not for WithoutUserNamespace: use CellWithoutUserNamespace")
		case want.CgroupParent != "" && have.CgroupParent != want.CgroupParent:
			return nil, fault.Option("WithCell", "the cell's cgroup parent is %q, WithCgroupParent says %q", have.CgroupParent, want.CgroupParent)
		}
		return given.impl, nil
	}
	cells.mu.Lock()
	defer cells.mu.Unlock()
	if have := cells.all[want]; have != nil {
		if !have.Dying() {
			return have, nil
		}
		_ = end(context.Background(), have) // clean up after one that was lost
		delete(cells.all, want)
	}
	booted, err := boot(want)
	if err != nil {
		return nil, err
	}
	if cells.all == nil {
		cells.all = map[cell.Config]*cell.Cell{}
	}
	cells.all[want] = booted
	return booted, nil
}

func shutdown(ctx context.Context) error {
	cells.mu.Lock()
	defer cells.mu.Unlock()
	var errs []error
	for config, c := range cells.all {
		if err := end(ctx, c); err != nil {
			errs = append(errs, fmt.Errorf("sandbox: shutdown: %w", err))
		}
		delete(cells.all, config)
	}
	closeHostFiles()
	cell.CloseOwn()
	return errors.Join(errs...)
}

// live is the runs that have not ended.
var live liveRuns

type liveRuns struct {
	mu  sync.Mutex
	all map[*running]struct{}
}

func (l *liveRuns) add(r *running) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[*running]struct{}{}
	}
	l.all[r] = struct{}{}
}

func (l *liveRuns) remove(r *running) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, r)
}

// thaw lets the cell's paused runs die with it.
func (l *liveRuns) thaw(c *cell.Cell) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.all {
		if r.cell == c {
			r.letEnd()
		}
	}
}

// busyCPUs is how many CPUs a run can use at a time.
func busyCPUs(l *spec.Limits) int {
	n := runtime.NumCPU()
	if l.CPUs != 0 {
		n = min(n, int(l.CPUs)+1)
	}
	return n
}

// bootError says what to do about a cell that could not be booted.
func bootError(err error, hostIDs bool) error {
	return &SetupError{Stage: "cell", Err: err, Hint: bootHint(err, hostIDs)}
}
