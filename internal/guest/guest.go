//go:build linux

// Package guest is PID 1 of a run that has a kernel of its own, in a container of gVisor: this
// program's own file, which starts the commands there, reaps, passes signals on, and reports the
// commands' starts and ends as PID 1 of another run does. It also has the host's side of that.
package guest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
)

// name is the only argument and variable the only one of the environment: they make a process of
// this program such a PID 1.
const (
	name     = "sandbox-guest"
	variable = "_SANDBOX_GUEST"
)

// Args and Env are the arguments and the environment of PID 1. Nothing of a command is in them,
// because PID 1's loader and Go's runtime would heed what is in its environment, such as
// LD_PRELOAD.
var (
	Args = []string{name}
	Env  = []string{variable + "=1"}
)

// ControlFD is the descriptor from which PID 1 takes what to start. It is a socket, as those to
// which it reports, which /proc can't open again. The first command is the run's: with it, the run
// ends.
const ControlFD = 3

// Command is what PID 1 starts.
type Command struct {
	Dir       string
	UID, GID  int
	Groups    []int
	Argv, Env []string
}

// description is how a Command is passed on: no text is changed by its encoding.
type description struct {
	Dir       []byte
	UID, GID  int
	Groups    []int
	Argv, Env []byte // their strings end with a zero byte
}

func zeroed(list []string) []byte {
	var b []byte
	for _, s := range list {
		b = append(append(b, s...), 0)
	}
	return b
}

func unzeroed(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// file returns an open file with the command's description.
func (c *Command) file() (*os.File, error) {
	fd, err := unix.MemfdCreate("command", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "command")
	b, err := json.Marshal(description{[]byte(c.Dir), c.UID, c.GID, c.Groups, zeroed(c.Argv), zeroed(c.Env)})
	if err == nil {
		_, err = f.WriteAt(b, 0) // it is read from its beginning
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readCommand(r io.Reader) (*Command, error) {
	var d description
	if err := json.NewDecoder(r).Decode(&d); err != nil {
		return nil, err
	}
	c := &Command{string(d.Dir), d.UID, d.GID, d.Groups, unzeroed(d.Argv), unzeroed(d.Env)}
	if len(c.Argv) == 0 {
		return nil, errors.New("there is no command")
	}
	return c, nil
}

// Start asks PID 1, whose socket control is, to start a command with the three streams. It returns
// the socket to which PID 1 reports that command's events: Started or Failed, whose Index is InDir
// if the working directory is to blame, and Exited.
func Start(control *forkserver.Conn, c *Command, streams []int) (*forkserver.Conn, error) {
	of, err := c.file()
	if err != nil {
		return nil, err
	}
	defer of.Close()
	conn, far, err := forkserver.NewConn()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	if err := control.Send([]byte{0}, append([]int{int(far.Fd()), int(of.Fd())}, streams...)...); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// InDir is the Index of a Failed event that is about the working directory.
const InDir = 1

// What the host says about a command, in messages of two bytes on the command's socket: one of
// these, and a signal. The end of the socket has PID 1 kill the command, and what it has started.
const (
	send = iota // the signal
	stop        // send the signal, and kill at the command's end what it has started by now
)

// Signal has PID 1 send a signal to the command. It does not wait for that.
func Signal(conn *forkserver.Conn, s unix.Signal) error { return conn.Send([]byte{send, byte(s)}) }

// Stop has PID 1 send a signal to a further command that is to end. What the command has started by
// now is killed at its end.
func Stop(conn *forkserver.Conn, s unix.Signal) error { return conn.Send([]byte{stop, byte(s)}) }

// Kill has PID 1 kill a further command, with what it has started. It is the last word on its
// socket, and needs no room in it.
func Kill(conn *forkserver.Conn) error { return conn.HangUp() }
