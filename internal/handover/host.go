//go:build linux

// Package handover starts PID 1 of a cell in a container of a daemon, which passes no descriptors
// on and maps ids in its own way. This program is executed there as a receiver: it asks for what
// PID 1 is to have over a socket that is bound into the container, starts PID 1 in namespaces of
// its own, gives up its rights, and ends when PID 1 does.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/wall"
)

// What the container has to have.
const (
	// Program is the path of this program's file, Name its only argument and Env its
	// environment besides LibraryPath.
	Program = "/receiver"
	Name    = "sandbox-receiver"
	Env     = "_SANDBOX_RECEIVER=1"
	// Dir is where the directory of the Listener is bound.
	Dir = "/run"
)

// Capabilities are what the receiver needs, valid on the host until PID 1 has been started: to map
// the cell's ids, and to become nobody.
var Capabilities = []string{"CAP_SETUID", "CAP_SETGID"}

const socketName = "socket"

// OwnFile leads to the file that this process executes.
const OwnFile = "/proc/self/exe"

// OwnPath returns the path of the file that this process executes, or "" if another has its name by
// now, or none.
func OwnPath() (string, error) {
	is, err := os.Stat(OwnFile)
	if err != nil {
		return "", err
	}
	path, err := os.Readlink(OwnFile)
	if err != nil {
		return "", err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(is, there) {
		return "", nil
	}
	return path, nil
}

// order is what a receiver gets, with the descriptors of PID 1: its standard error and then those
// from 3 on.
type order struct {
	Args, Env   []string
	UIDs, GIDs  []wall.Extent
	HostNetwork bool
	Nice        int // of this process: the daemon's is another's
}

// Listener is where a receiver asks.
type Listener struct{ *net.UnixListener }

// Listen makes a directory with the socket, for root alone.
func Listen(dir string) (*Listener, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return &Listener{l}, nil
}

// Deliver waits for the receiver, puts it into the container's own cgroup, where PID 1 will be too,
// and hands over what PID 1 is to have. It returns when PID 1 has been started, or when the
// container is gone before its receiver has asked: then gone is closed.
func (l *Listener) Deliver(c *wall.Container, timeout time.Duration, gone <-chan struct{}) error {
	if err := l.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	delivered := make(chan struct{})
	defer close(delivered)
	go func() {
		select {
		case <-gone:
			l.Close() // nobody will ask
		case <-delivered:
		}
	}()
	conn, err := l.AcceptUnix()
	if errors.Is(err, net.ErrClosed) {
		return errors.New("the container has ended before its first process asked what to start")
	}
	if err != nil {
		return fmt.Errorf("waiting for the container's first process: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if c.MakeCgroup != nil {
		if err := enter(c, conn); err != nil {
			return fmt.Errorf("the cell's own cgroup: %w", err)
		}
	}
	nice, err := niceness()
	if err != nil {
		return err
	}
	message, err := json.Marshal(order{Args: c.Args, Env: c.Env, UIDs: c.UIDs, GIDs: c.GIDs, HostNetwork: c.HostNetwork, Nice: nice})
	if err != nil {
		return err
	}
	fds := []int{int(c.Stderr.Fd())}
	for _, f := range c.Files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix(message, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	answer := make([]byte, mostAnswer)
	n, err := conn.Read(answer)
	switch {
	case err != nil:
		return fmt.Errorf("waiting until PID 1 is there: %w", err)
	case string(answer[:n]) != started:
		return fmt.Errorf("starting PID 1 in the container: %s", answer[:n])
	}
	return nil
}

// niceness returns that of the calling thread. The system call returns 20 - nice: getpriority(2).
func niceness() (int, error) {
	priority, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	return 20 - priority, os.NewSyscallError("getpriority", err)
}

// started is the answer of a receiver that has started PID 1. Any other is an error's text.
const started = "started"

const mostAnswer = 4 << 10

// enter puts the process at the other end into the container's cgroup. Nothing but the receiver is
// in the container, and it waits.
func enter(c *wall.Container, conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, peerErr); err != nil {
		return err
	}
	if peer.Pid == 0 {
		return errors.New("the daemon's containers are in no pid namespace below this process's")
	}
	dirs, err := c.MakeCgroup()
	for _, dir := range dirs {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, peer.Pid), 0)
		}
	}
	return err
}
