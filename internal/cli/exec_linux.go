package cli

// The part of "sandbox exec" that asks.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/named"
)

// execute asks the process that holds the run for the command, and waits for its end.
func execute(ctx context.Context, s *settings) (*answer, error) {
	c, err := named.Dial(s.name)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("no run has the name %q: sandbox ps lists those that have one", s.name)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q := &request{Flags: bytesOf(s.given), Env: bytesOf(s.env), Command: bytesOf(s.command)}
	streams := []syscall.Conn{os.Stdin, os.Stdout, os.Stderr}
	var here *console
	if s.tty {
		if here, err = openConsole(); err != nil {
			return nil, err
		}
		streams = nil
		q.Rows, q.Cols = here.size()
		q.Env = append(bytesOf(termEnv()), q.Env...) // -env may say otherwise
	}
	if err := c.Send(q, streams...); err != nil {
		return nil, lost(err)
	}
	stop := context.AfterFunc(ctx, func() {
		var i interrupt
		errors.As(context.Cause(ctx), &i)
		_ = c.Send(interruption{i.Signal})
	})
	defer stop()
	if s.tty {
		return onRemoteTerminal(here, c)
	}
	return answered(c)
}

// answered waits for the answer.
func answered(c *named.Conn) (*answer, error) {
	a := &answer{}
	if _, err := c.Receive(a); err != nil {
		return nil, lost(err)
	}
	return a, nil
}

// lost says what it means that the process which holds the run does not answer.
func lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errors.New("the process that holds the run has ended, and the run with it")
	}
	return err
}

// onRemoteTerminal connects this program's terminal to that of a command that was asked for, and
// waits for its end.
func onRemoteTerminal(here *console, c *named.Conn) (*answer, error) {
	a := &answer{}
	files, err := c.Receive(a)
	if err != nil {
		return nil, lost(err)
	}
	defer closeFiles(files)
	if len(files) != 1 {
		return a, nil // it was not started
	}
	other := &remoteTerminal{f: files[0], left: maxLeft}
	end := make(chan error, 1)
	go func() {
		var err error
		a, err = answered(c)
		_ = other.f.SetReadDeadline(time.Unix(1, 0))
		end <- err
	}()
	if err := here.connect(other, other.resize); err != nil {
		return nil, err
	}
	err = <-end
	return a, err
}

// remoteTerminal is the other end of the terminal of a command in a run of another process.
type remoteTerminal struct {
	f    *os.File
	left int
}

// maxLeft bounds what is read after the command's end: a terminal holds less, but what the command
// has left in the background may go on writing.
const maxLeft = 1 << 20

// Read returns io.EOF when nobody has the terminal open any more, or when its deadline is over and
// nothing is left to read.
func (t *remoteTerminal) Read(b []byte) (n int, err error) {
	n, err = t.f.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) && t.left > 0 {
		raw, rawErr := t.f.SyscallConn()
		if rawErr != nil {
			return 0, rawErr
		}
		_ = raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) })
		n = max(n, 0)
		t.left -= n
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (t *remoteTerminal) Write(b []byte) (int, error) { return t.f.Write(b) }

func (t *remoteTerminal) resize(rows, cols uint16) error {
	raw, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// list prints the names of runs, and the processes that hold them.
func list(asJSON bool) error {
	holders, err := named.List()
	if err != nil {
		return err
	}
	if asJSON {
		all := []holderJSON{}
		for _, h := range holders {
			all = append(all, holderJSON{h.Name, h.PID})
		}
		writeJSON(os.Stdout, all)
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tPID")
	for _, h := range holders {
		fmt.Fprintf(w, "%s\t%d\n", h.Name, h.PID)
	}
	return w.Flush()
}
