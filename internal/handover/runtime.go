//go:build linux

package handover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cellkit/sandbox/internal/wall"
)

// Prefix begins the names of a daemon's containers, which end with the cell's id.
const Prefix = "sandbox-cell-"

// Patience is far more than any request takes that a container's life does not prolong.
const Patience = time.Minute

// Daemon makes containers whose first process is a receiver.
type Daemon interface {
	Name() string             // as CellRuntime has it
	Version() (string, error) // in a line

	// Run makes and starts a container of that name, with dir, where the receiver asks, at Dir.
	// It returns a channel that is closed when the container has ended. After an error Remove
	// is called.
	Run(c *wall.Container, name, dir string) (gone <-chan struct{}, err error)

	// Signal sends a signal to the container's first process. One that is gone is no error.
	Signal(name string, sig syscall.Signal) error

	// Remove ends a container if it is there, waits until it is gone, and removes all that the
	// daemon has of it.
	Remove(name string) error
}

// Register makes a daemon known whose client is in this program. open returns one that answers.
func Register(name string, open func() (Daemon, error)) {
	wall.Register(name, wall.Module{
		Open: func() (wall.Runtime, error) {
			d, err := open()
			if err != nil {
				return nil, err
			}
			return daemonWall{d}, nil
		},
		Clean: func(id, _ string) error {
			d, err := open()
			if err != nil {
				return err
			}
			return d.Remove(Prefix + id)
		},
	})
}

// daemonWall is the Wall of a daemon that answers.
type daemonWall struct{ Daemon }

// OneExtent implements wall.Runtime. The daemon maps no ids: the cell's own user namespace is in
// its container.
func (daemonWall) OneExtent() bool { return false }

// Explain implements wall.Wall. The texts of daemons are for people.
func (daemonWall) Explain(error) (wall.Why, bool) { return wall.Other, false }

// Start implements wall.Wall. The container's first process is a receiver, which starts PID 1.
func (w daemonWall) Start(c *wall.Container) (_ wall.Process, err error) {
	if err := os.Mkdir(c.Dir, 0o711); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.Dir, "run")
	listener, err := Listen(dir)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	p := &process{Daemon: w.Daemon, name: Prefix + c.ID}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Destroy())
		}
	}()
	if p.gone, err = w.Run(c, p.name, dir); err != nil {
		return nil, err
	}
	if err := listener.Deliver(c, Patience, p.gone); err != nil {
		return nil, err
	}
	return p, nil
}

// process is a container, which stands for PID 1 of the cell in it.
type process struct {
	Daemon
	name string
	gone <-chan struct{}
}

// Wait implements wall.Process. The daemon, not this process, knows the container's status.
func (p *process) Wait() (*os.ProcessState, error) {
	<-p.gone
	return nil, nil
}

// Signal implements wall.Process.
func (p *process) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("unsupported signal %v", sig)
	}
	return p.Daemon.Signal(p.name, number)
}

// Destroy implements wall.Process.
func (p *process) Destroy() error { return p.Remove(p.name) }
