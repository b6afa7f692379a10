package sandbox

import (
	"errors"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// CellOption changes one thing of a cell.
type CellOption func(*cellConfig)

type cellConfig struct {
	network      Network // nil for NetworkNone
	cgroupParent string
	hostIDs      bool
	runtime      string // "" for the default
}

// CellNetwork sets which network runs of the cell can have: with NetworkHost all of its runs must
// use WithNetwork(NetworkHost). Default: NetworkNone.
func CellNetwork(n Network) CellOption { return func(c *cellConfig) { c.network = n } }

// CellCgroupParent does for all runs of the cell what WithCgroupParent does for a sandbox's.
func CellCgroupParent(path string) CellOption { return func(c *cellConfig) { c.cgroupParent = path } }

// CellWithoutUserNamespace makes a cell for runs with WithoutUserNamespace: see there for what such
// runs lack. All runs of the cell must use that option. It needs root.
func CellWithoutUserNamespace() CellOption { return func(c *cellConfig) { c.hostIDs = true } }

// CellRuntime sets what makes the cell. "libcontainer" and "builtin" are linked into this program
// and for everybody. "runc", "crun", "youki", "systemd-nspawn" and "lxc" are installed container
// runtimes: all but runc need root. They are looked up in this process's PATH and run as its user,
// so no directory in it may be another user's. "docker" and "libvirt" take root and a program that
// imports github.com/cellkit/sandbox/docker or github.com/cellkit/sandbox/libvirt. Runs are made in
// the same way and cost the same in each; docs/WALLS.md says what differs. Default: "libcontainer",
// or "builtin" in a program that was built without cgo, which has no libcontainer, and where no
// cgroups are mounted, which libcontainer needs. If there is none of this name, the *SetupError of
// NewCell says how to get it.
//
// "runsc", which is gVisor, is another thing: each run of the cell is a container of its own with a
// kernel of its own, which a process of gVisor is. It is slower, and takes what docs/WALLS.md lists
// of the options; each other one is an *OptionError.
func CellRuntime(name string) CellOption { return func(c *cellConfig) { c.runtime = name } }

// Cell is an outer container of its own for runs that must not share one with others. Most programs
// need none: runs share a default cell, which the first of them boots.
type Cell struct{ is *cellImpl }

// NewCell boots a cell. That takes some tens of milliseconds; runs in it then cost what they cost
// in any cell. The error is a *SetupError, or the *OptionErrors of wrong options, joined.
func NewCell(opts ...CellOption) (*Cell, error) {
	var c cellConfig
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	is, err := newCell(c)
	if err != nil {
		return nil, err
	}
	return &Cell{is}, nil
}

// check returns all wrong options as one error, in the words of the runs' own options.
func (c *cellConfig) check() error {
	var errs []error
	if _, ok := c.network.(network); !ok && c.network != nil {
		errs = append(errs, fault.Option("CellNetwork", "a cell is on no private network, its runs are: use WithNetwork"))
	}
	if c.network == NetworkHost && c.runtime == spec.GVisor {
		errs = append(errs, fault.Option("CellNetwork", "runs in a cell of runsc have no network but a loopback: leave it out, or use another CellRuntime"))
	}
	if err := spec.CheckCgroupParent(c.cgroupParent); err != nil {
		errs = append(errs, fault.Option("CellCgroupParent", "%w", err))
	}
	if err := spec.CheckRuntime(c.runtime, c.hostIDs); err != nil {
		errs = append(errs, fault.Option("CellRuntime", "%w", err))
	}
	return errors.Join(errs...)
}

// made reports whether NewCell made the cell.
func (c *Cell) made() bool { return c != nil && c.is != nil }

// Close kills every run in the cell, ends the cell and waits until nothing of it is left. Runs that
// it killed report ErrCellLost.
func (c *Cell) Close() error {
	if !c.made() {
		return errors.New("sandbox: Close: the cell was not made by NewCell: look at the error of that")
	}
	return closeCell(c.is)
}
