package named

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Listener takes connections to a name.
type Listener struct {
	dir    directory
	name   string
	socket *net.UnixListener
}

// Listen takes a name, which must be Checked. It fails if a live process has it; the socket of one
// that was killed is replaced.
func Listen(name string) (*Listener, error) {
	d, err := openDirectory()
	if err != nil {
		return nil, err
	}
	l := &Listener{dir: d, name: name}
	if err := d.locked(l.listen); err != nil {
		d.Close()
		return nil, err
	}
	return l, nil
}

// ErrInUse means that another process listens by the name.
var ErrInUse = errors.New("the name is in use")

func (l *Listener) listen() error {
	address := &net.UnixAddr{Name: l.dir.path(l.name)}
	c, err := net.DialUnix("unix", nil, address)
	switch {
	case err == nil:
		pid, _ := peer(c)
		c.Close()
		return fmt.Errorf("%w by process %d: choose another one, or end that", ErrInUse, pid)
	case errors.Is(err, unix.EAGAIN): // too many have connected at once
		return fmt.Errorf("%w: choose another one", ErrInUse)
	case errors.Is(err, unix.ECONNREFUSED): // nobody listens any more: unix(7)
		err = os.Remove(address.Name)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return err
	}
	if l.socket, err = net.ListenUnix("unix", address); err == nil {
		l.socket.SetUnlinkOnClose(false) // Close does, under the lock
	}
	return err
}

// Accept waits for a connection of a process of this user. Others are turned away.
func (l *Listener) Accept() (*Conn, error) {
	for {
		c, err := l.socket.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if _, err := peer(c); err == nil {
			return &Conn{c}, nil
		}
		c.Close()
	}
}

// Close gives the name up.
func (l *Listener) Close() error {
	defer l.dir.Close()
	return l.dir.locked(func() error {
		err := os.Remove(l.dir.path(l.name))
		if errors.Is(err, fs.ErrNotExist) { // somebody has tidied up
			err = nil
		}
		return errors.Join(err, l.socket.Close())
	})
}

// Dial connects to the process that has the name. Without one, the error is fs.ErrNotExist.
func Dial(name string) (*Conn, error) {
	d, err := openDirectory()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.dial(name)
}

func (d directory) dial(name string) (*Conn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.path(name)})
	if errors.Is(err, unix.ECONNREFUSED) { // it was killed
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	if _, err := peer(c); err != nil {
		c.Close()
		return nil, err
	}
	return &Conn{c}, nil
}

// Holder is a name, and the process that has it.
type Holder struct {
	Name string
	PID  int
}

// List returns the names that live processes have, sorted.
func List() ([]Holder, error) {
	d, err := openDirectory()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.names()
	slices.Sort(names)
	var list []Holder
	for _, name := range names {
		if c, err := d.dial(name); err == nil {
			pid, _ := peer(c.socket)
			list = append(list, Holder{name, pid})
			c.Close()
		}
	}
	return list, err
}

// peer returns the process at the other end, or for a listener's end the one that listens, if it is
// this user's: unix(7), SO_PEERCRED. It must be in this user namespace, too: where a run has its
// user's own id, and a directory with sockets as a bind, what is in the run is somebody else.
func peer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	var pidfd int
	var noPidfd error
	ctlErr := raw.Control(func(fd uintptr) {
		who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		pidfd, noPidfd = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	if noPidfd == nil {
		defer unix.Close(pidfd)
	}
	if err = errors.Join(ctlErr, err); err != nil {
		return 0, err
	}
	if who.Uid != uint32(os.Geteuid()) {
		return 0, fmt.Errorf("the process at the other end is of user %d", who.Uid)
	}
	mine, err := os.Readlink("/proc/self/ns/user")
	if errors.Is(err, fs.ErrNotExist) { // this kernel has none
		return int(who.Pid), nil
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", who.Pid))
	if err == nil && noPidfd == nil {
		// It lives, so its number was nobody else's.
		err = unix.PidfdSendSignal(pidfd, 0, nil, 0)
	} else if noPidfd != unix.ENOPROTOOPT { // before Linux 6.5
		err = errors.Join(err, noPidfd)
	}
	if err != nil || theirs != mine {
		return 0, fmt.Errorf("the process at the other end, %d, has ended or is in another user namespace", who.Pid)
	}
	return int(who.Pid), nil
}
