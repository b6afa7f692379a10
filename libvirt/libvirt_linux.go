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

	"github.com/cellkit/sandbox/internal/handover"
	"github.com/cellkit/sandbox/internal/wall"
)

const name = "libvirt" // as CellRuntime has it

func init() { handover.Register(name, open) }

// daemon is a daemon that answers.
type daemon struct{ version string }

// sockets are where a daemon with the LXC driver listens: that of this driver alone, and the one
// that has all of them.
var sockets = []string{"/run/libvirt/virtlxcd-sock", "/run/libvirt/libvirt-sock"}

// Where the driver has a log and mount points for each domain.
const (
	logDir   = "/var/log/libvirt/lxc"
	stateDir = "/run/libvirt/lxc"
)

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
	limit := time.AfterFunc(handover.Patience, func() { conn.Close() })
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
	conn, err := net.DialTimeout("unix", sockets[0], handover.Patience)
	if err == nil {
		return conn, nil
	}
	conn, errOther := net.DialTimeout("unix", sockets[1], handover.Patience)
	if errOther == nil {
		return conn, nil
	}
	return nil, fmt.Errorf("%w, and %w", err, errOther)
}

// open asks the daemon for its version.
func open() (handover.Daemon, error) {
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

// Name implements handover.Daemon.
func (*daemon) Name() string { return name }

// Version implements handover.Daemon.
func (d *daemon) Version() (string, error) { return d.version, nil }

// Remove implements handover.Daemon: for a domain and its files.
func (*daemon) Remove(domain string) error {
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
