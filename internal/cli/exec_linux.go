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

	"github.com/cellkit/sandbox/internal/console"
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
	var here *console.Console
	if s.tty {
		if here, err = console.Open(); err != nil {
			return nil, err
		}
		streams = nil
		q.Rows, q.Cols = here.Size()
		q.Env = append(bytesOf(console.Env()), q.Env...) // -env may say otherwise
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
func onRemoteTerminal(here *console.Console, c *named.Conn) (*answer, error) {
	a := &answer{}
	files, err := c.Receive(a)
	if err != nil {
		return nil, lost(err)
	}
	defer closeFiles(files)
	if len(files) != 1 {
		return a, nil // it was not started
	}
	if err = here.ConnectUntil(files[0], func() (err error) {
		a, err = answered(c)
		return err
	}); err != nil {
		return nil, err
	}
	return a, nil
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
