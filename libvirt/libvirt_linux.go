package libvirt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/cellkit/sandbox/internal/wall"
)

const name = "libvirt" // as CellRuntime has it

func init() { wall.Register(name, wall.Module{Open: open, Clean: clean}) }

// daemon is the Wall of a daemon that answers.
type daemon struct{ version string }

// sockets are where a daemon with the LXC driver listens: that of this driver alone, and the one
// that has all of them.
var sockets = []string{"/run/libvirt/virtlxcd-sock", "/run/libvirt/libvirt-sock"}

// Where the driver has a log and mount points for each domain.
const (
	logDir   = "/var/log/libvirt/lxc"
	stateDir = "/run/libvirt/lxc"
)

// patience is far more than any request takes.
const patience = time.Minute

// ask calls do with a connection to the LXC driver, which then is closed.
func ask(do func(*libvirt.Libvirt) error) error {
	missing := func(err error) error {
		return &wall.MissingError{Runtime: name, Debian: debian, Daemon: true, Err: err}
	}
	conn, err := dial()
	if err != nil {
		return missing(err)
	}
	defer conn.Close()
	// The client itself waits without a limit.
	limit := time.AfterFunc(patience, func() { conn.Close() })
	defer limit.Stop()
	l := libvirt.NewWithDialer(dialers.NewAlreadyConnected(conn))
	if err := l.ConnectToURI("lxc:///system"); err != nil {
		return missing(err)
	}
	return do(l)
}

// debian are the packages of the daemon and the driver.
const debian = "libvirt-daemon-system libvirt-daemon-driver-lxc"

func dial() (net.Conn, error) {
	conn, err := net.DialTimeout("unix", sockets[0], patience)
	if err == nil {
		return conn, nil
	}
	conn, errOther := net.DialTimeout("unix", sockets[1], patience)
	if errOther == nil {
		return conn, nil
	}
	return nil, fmt.Errorf("%w, and %w", err, errOther)
}

// open asks the daemon for its version.
func open() (wall.Runtime, error) {
	d := &daemon{}
	err := ask(func(l *libvirt.Libvirt) error {
		v, err := l.ConnectGetLibVersion()
		d.version = fmt.Sprintf("libvirt %d.%d.%d", v/1e6, v/1e3%1e3, v%1e3)
		return err
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Name implements wall.Wall.
func (*daemon) Name() string { return name }

// OneExtent implements wall.Runtime. libvirt maps no ids here: the cell's own user namespace is in
// its container.
func (*daemon) OneExtent() bool { return false }

// NeedsRoot implements wall.Runtime.
func (*daemon) NeedsRoot() string { return name + " makes cells of root alone" }

// Version implements wall.Runtime.
func (d *daemon) Version() (string, error) { return d.version, nil }

// Explain implements wall.Wall. The daemon's texts are for people.
func (*daemon) Explain(error) (wall.Why, bool) { return wall.Other, false }

// prefix begins the names of domains.
const prefix = "sandbox-cell-"

// clean removes what a process that was killed has left with the daemon.
func clean(id, _ string) error { return remove(prefix + id) }

// remove ends a domain if it is there, waits until it is gone, and removes its files.
func remove(domain string) error {
	return ask(func(l *libvirt.Libvirt) error {
		for { // until the connection is closed
			d, err := l.DomainLookupByName(domain)
			switch {
			case libvirt.IsNotFound(err):
				return removeFiles(domain)
			case err != nil:
				return err
			}
			err = l.DomainDestroy(d)
			if isCode(err, libvirt.ErrOperationInvalid) {
				err = forget(l, d)
			}
			if err != nil && !libvirt.IsNotFound(err) {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// forget has the daemon forget a domain that ended while there was no daemon: a later one knows it,
// as one that is shut off, and keeps a transient one for good.
func forget(l *libvirt.Libvirt, d libvirt.Domain) error {
	description, err := l.DomainGetXMLDesc(d, 0)
	if err != nil {
		return err
	}
	if d, err = l.DomainDefineXML(description); err != nil {
		return err
	}
	return l.DomainUndefine(d)
}

// removeFiles removes what libvirt leaves of each domain, its log and mount points, and what it
// leaves of some: a socket if that did not start, and cgroups if the daemon was killed before.
func removeFiles(domain string) error {
	left := []string{filepath.Join(logDir, domain+".log")}
	for _, of := range []string{"dev", "devpts", "fuse", "sock"} {
		left = append(left, filepath.Join(stateDir, domain+"."+of))
	}
	for _, hierarchy := range []string{"", "*"} {
		groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", hierarchy, "machine/lxc-*-"+domain+".libvirt-lxc"))
		if err != nil {
			return err
		}
		left = append(left, groups...)
	}
	var errs []error
	for _, path := range left {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// isCode reports whether err is that error of libvirt.
func isCode(err error, code libvirt.ErrorNumber) bool {
	var e libvirt.Error
	return errors.As(err, &e) && e.Code == uint32(code)
}
