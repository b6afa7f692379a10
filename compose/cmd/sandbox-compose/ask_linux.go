package main

// The part of ps, logs, exec and down that asks the process which holds the project.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/cellkit/sandbox/compose"
	"github.com/cellkit/sandbox/internal/console"
	"github.com/cellkit/sandbox/internal/named"
	"github.com/cellkit/sandbox/internal/stdio"
)

// dial connects to the process that holds the project which the flags name.
func (e *env) dial() (*named.Conn, error) {
	project, err := e.projectName()
	if err != nil {
		return nil, err
	}
	name := socketName(project)
	if err := named.Check(name); err != nil {
		return nil, err
	}
	c, err := named.Dial(name)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("project %s is not up: sandbox-compose up -d starts it", project)
	}
	return c, err
}

// ask sends a request and calls f for each answer, until it returns false.
func ask(c *named.Conn, q request, f func(answer) (bool, error), files ...syscall.Conn) error {
	if err := c.Send(q, files...); err != nil {
		return lost(err)
	}
	for {
		var a answer
		if _, err := c.Receive(&a); err != nil {
			return lost(err)
		}
		if more, err := f(a); err != nil || !more {
			return err
		}
	}
}

// lost says what it means that the process which holds the project does not answer.
func lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errors.New("the process that holds the project has ended, and all services with it")
	}
	return err
}

func one(use func(answer)) func(answer) (bool, error) {
	return func(a answer) (bool, error) {
		if a.Error != "" {
			return false, errors.New(a.Error)
		}
		use(a)
		return false, nil
	}
}

// dialFor parses flags, as parse does, and dials the process that holds the project.
func (e *env) dialFor(args []string, least int, what string) (rest []string, c *named.Conn, err error) {
	if rest, err = e.parse(args, least, what); err == nil {
		c, err = e.dial()
	}
	return rest, c, err
}

func down(e *env, args []string) (int, error) {
	_, c, err := e.dialFor(args, 0, "")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return 0, ask(c, request{Op: "down"}, one(func(answer) {}))
}

func logs(e *env, args []string) (int, error) {
	follow := e.flags.Bool("follow", false, "go on until the project ends")
	asJSON := e.flags.Bool("json", false, "print JSON, an object a line")
	names, c, err := e.dialFor(args, 0, "")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(e.ctx, func() { _ = c.Close() })()
	err = ask(c, request{Op: "logs", Services: names, Follow: *follow}, func(a answer) (bool, error) {
		switch {
		case a.Error != "":
			return false, errors.New(a.Error)
		case a.Line == nil:
			return false, nil
		case *asJSON:
			return true, printJSON(e.out, a.Line)
		}
		return true, printLine(e.out, 0, *a.Line)
	})
	if e.ctx.Err() != nil {
		return 0, nil
	}
	return 0, err
}

// execute has a command executed in a service. The service gets pipes, or a terminal of its own:
// that of this program, or an open file, is not for who may be hostile.
func execute(e *env, args []string) (int, error) {
	terminal := e.flags.Bool("t", false, "give the command a terminal of its own, connected to the one at hand")
	rest, c, err := e.dialFor(args, 2, "SERVICE [--] COMMAND...")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if rest[1] == "--" { // as for sandbox exec
		if rest = slices.Delete(rest, 1, 2); len(rest) == 1 {
			return 0, errors.New("exec: no command is given after --")
		}
	}
	defer context.AfterFunc(e.ctx, func() { _ = c.Close() })()
	q := request{Op: "exec", Services: rest[:1], Terminal: *terminal}
	for _, a := range rest[1:] {
		q.Command = append(q.Command, []byte(a))
	}
	do := e.onPipes
	if *terminal {
		do = e.onTerminal
	}
	var a answer
	if err := do(c, q, &a); err != nil {
		return 0, lost(err)
	}
	if a.Error != "" {
		fmt.Fprintln(e.err, "sandbox-compose:", a.Error)
	}
	return a.Exit, nil
}

// onPipes has a command executed whose standard streams are pipes.
func (e *env) onPipes(c *named.Conn, q request, a *answer) error {
	pipes, err := openPipes()
	if err != nil {
		return err
	}
	if err := c.Send(q, pipes.theirs[0], pipes.theirs[1], pipes.theirs[2]); err != nil {
		return err
	}
	copied := pipes.copy(e)
	if _, err := c.Receive(a); err != nil {
		return err
	}
	copied()
	return nil
}

// onTerminal has a command executed on a terminal, the other end of which comes before the answer.
func (e *env) onTerminal(c *named.Conn, q request, a *answer) error {
	here, err := console.Open()
	if err != nil {
		return err
	}
	q.Env = console.Env()
	q.Rows, q.Cols = here.Size()
	if err := c.Send(q); err != nil {
		return err
	}
	files, err := c.Receive(a)
	if err != nil || len(files) != 1 { // then it was not started
		closeAll(files)
		return err
	}
	defer closeAll(files)
	var last answer
	if err := here.ConnectUntil(files[0], func() error {
		_, err := c.Receive(&last)
		return err
	}); err != nil {
		return err
	}
	*a = last
	return nil
}

// pipes are the standard streams of a command, and their other ends.
type pipes struct{ ours, theirs [3]*os.File }

func openPipes() (*pipes, error) {
	p := &pipes{}
	for i := range p.ours {
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, err
		}
		p.ours[i], p.theirs[i] = r, w
		if i == 0 {
			p.ours[i], p.theirs[i] = w, r
		}
	}
	return p, nil
}

func (p *pipes) close() {
	for _, f := range append(p.ours[:], p.theirs[:]...) {
		if f != nil {
			f.Close()
		}
	}
}

// copy begins to copy, once the other ends were sent. done must be called when the command has
// ended. It copies what the pipes hold then and does not wait for their end: what the command has
// left behind may keep them open.
func (p *pipes) copy(e *env) (done func()) {
	for _, f := range p.theirs {
		f.Close()
	}
	go func() { // it ends with this process, as nobody can end a read of a terminal
		_, _ = io.Copy(p.ours[0], e.in)
		p.ours[0].Close()
	}()
	var outputs [2]*stdio.PipeReader
	var copying sync.WaitGroup
	for i, to := range []io.Writer{e.out, e.err} {
		from := stdio.NewPipeReader(p.ours[i+1])
		outputs[i] = from
		copying.Go(func() {
			_, _ = io.Copy(to, from)
			from.Close()
		})
	}
	return func() {
		for _, from := range outputs {
			from.End()
		}
		copying.Wait()
	}
}

func ps(e *env, args []string) (int, error) {
	asJSON := e.flags.Bool("json", false, "print JSON: an array of services")
	watch := e.flags.Bool("watch", false, "go on until the project ends, or a signal comes")
	_, c, err := e.dialFor(args, 0, "")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	v := &view{out: e.out, asJSON: *asJSON, live: *watch && isTerminal(e.out)}
	for {
		var now []compose.Status
		if err := ask(c, request{Op: "ps"}, one(func(a answer) { now = a.Status })); err != nil {
			return 0, err
		}
		if err := v.show(now); err != nil || !*watch || !v.pause(e.ctx) {
			return 0, err
		}
	}
}
