package main

// A project has a name by which other processes of the user reach the one that holds it. On each
// connection that asks, and gets answers, until one of them closes it.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/compose"
	"github.com/cellkit/sandbox/internal/named"
)

// request asks for something. Strings of command lines need not be UTF-8, which JSON is.
type request struct {
	Op       string // "ps", "logs", "exec" or "down"
	Services []string
	Follow   bool
	// Of exec, with whom three pipes come, unless it is to have a terminal.
	Command    [][]byte
	Terminal   bool
	Rows, Cols uint16   // of the terminal
	Env        []string // what kind that is
}

// answer is what comes back. To logs there are several.
type answer struct {
	Status []compose.Status `json:",omitempty"`
	Line   *compose.Line    `json:",omitempty"`
	Exit   int              `json:",omitempty"`
	Error  string           `json:",omitempty"`
}

// exchangeTimeout is far more than a message takes between processes of one machine.
const exchangeTimeout = 10 * time.Second

// socketName returns the name under which a project is held, beside those of sandbox run -name.
func socketName(project string) string { return "compose." + project }

// holder answers for a project.
type holder struct {
	l       *named.Listener
	r       *compose.Running
	serving sync.WaitGroup
	over    chan struct{} // closed when no connection is taken any more
}

// listen takes the project's name.
func listen(project string) (*holder, error) {
	name := socketName(project)
	if err := named.Check(name); err != nil {
		return nil, &sandbox.OptionError{Option: "-p", Err: err}
	}
	l, err := named.Listen(name)
	if errors.Is(err, named.ErrInUse) {
		return nil, fmt.Errorf("project %s is up already: sandbox-compose down ends it, and -p gives this one another name", project)
	}
	if err != nil {
		return nil, fmt.Errorf("project %s: %w", project, err)
	}
	return &holder{l: l, over: make(chan struct{})}, nil
}

func (h *holder) serve(r *compose.Running) {
	h.r = r
	h.serving.Go(func() {
		for {
			c, err := h.l.Accept()
			switch {
			case err == nil:
				h.serving.Go(func() { h.handle(c) })
				continue
			case errors.Is(err, net.ErrClosed):
				return
			}
			select { // out of descriptors, or memory
			case <-time.After(exchangeTimeout / 100):
			case <-h.over:
				return
			}
		}
	})
}

// close gives the name up, and waits for the last answers.
func (h *holder) close() {
	close(h.over)
	_ = h.l.Close() // at worst it is found, and nobody answers
	h.serving.Wait()
}

// handle answers the requests on a connection.
func (h *holder) handle(c *named.Conn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// When the project has ended, whoever asks has some time left to take the answers.
	go func() {
		select {
		case <-h.over:
			_ = c.SetReadDeadline(time.Unix(1, 0))
			_ = c.SetWriteDeadline(time.Now().Add(exchangeTimeout))
		case <-ctx.Done():
		}
	}()
	for {
		q := &request{}
		files, err := c.Receive(q)
		if err == nil {
			err = h.answer(ctx, c, q, files)
		}
		closeAll(files)
		if err != nil {
			return
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// errLast is that nothing else is asked for on a connection.
var errLast = errors.New("answered")

// untilGone returns a context that ends with the connection, on which nothing else comes.
func untilGone(ctx context.Context, c *named.Conn) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		files, _ := c.Receive(&request{})
		closeAll(files)
	}()
	return ctx
}

func (h *holder) answer(ctx context.Context, c *named.Conn, q *request, files []*os.File) error {
	switch q.Op {
	case "ps":
		return c.Send(answer{Status: h.r.Status()})
	case "logs":
		return errors.Join(h.logs(untilGone(ctx, c), c, q), errLast)
	case "exec":
		return errors.Join(c.Send(h.execute(untilGone(ctx, c), c, q, files)), errLast)
	case "down":
		a := answer{}
		if err := h.r.Close(); err != nil {
			a.Error = err.Error()
		}
		return c.Send(a)
	}
	return c.Send(answer{Error: fmt.Sprintf("a project can't do %q: the two programs may be of different versions", q.Op)})
}

// logs sends lines, and an answer without one after the last.
func (h *holder) logs(ctx context.Context, c *named.Conn, q *request) error {
	known := map[string]bool{}
	for _, s := range h.r.Status() {
		known[s.Service] = true
	}
	for _, name := range q.Services {
		if !known[name] {
			return c.Send(answer{Error: fmt.Sprintf("the project has no service %q", name)})
		}
	}
	if q.Follow {
		for line := range h.r.Follow(ctx, q.Services...) {
			if err := c.Send(answer{Line: &line}); err != nil {
				return err
			}
		}
		return c.Send(answer{})
	}
	for _, s := range h.r.Status() {
		if s.Replica > 1 {
			continue // the lines of all replicas were sent with those of the first
		}
		i := h.r.Service(s.Service)
		if i == nil || len(q.Services) > 0 && !slices.Contains(q.Services, s.Service) {
			continue
		}
		for _, line := range i.Logs() {
			if err := c.Send(answer{Line: &compose.Line{Service: s.Service, Line: line}}); err != nil {
				return err
			}
		}
	}
	return c.Send(answer{})
}

// execute executes a command in a service. It ends with the connection.
func (h *holder) execute(ctx context.Context, c *named.Conn, q *request, files []*os.File) answer {
	if !q.Terminal && len(files) != 3 || len(q.Services) != 1 || len(q.Command) == 0 {
		return answer{Exit: failed, Error: "the request is incomplete"}
	}
	i := h.r.Service(q.Services[0])
	if i == nil {
		return answer{Exit: failed, Error: fmt.Sprintf("the project has no service %q that was started", q.Services[0])}
	}
	var args []string
	for _, a := range q.Command {
		args = append(args, string(a))
	}
	opts := []sandbox.Option{sandbox.WithCommand(args[0], args[1:]...)}
	if q.Terminal {
		opts = append(opts, sandbox.WithTerminal(q.Rows, q.Cols), sandbox.WithEnv(q.Env...))
	} else {
		opts = append(opts, sandbox.WithStdin(files[0]), sandbox.WithStdout(files[1]), sandbox.WithStderr(files[2]))
	}
	p, err := i.Exec(ctx, opts...)
	if err == nil && q.Terminal {
		// The asking process gets the other end itself.
		_ = c.SetWriteDeadline(time.Now().Add(exchangeTimeout))
		if err := c.Send(answer{}, p.Terminal().(syscall.Conn)); err != nil {
			return answer{Exit: failed, Error: errors.Join(err, p.Close()).Error()}
		}
	}
	if err == nil {
		_, err = p.Wait()
	}
	var exit *sandbox.ExitError
	switch {
	case err == nil:
		return answer{}
	case errors.Is(err, os.ErrProcessDone):
		return answer{Exit: failed, Error: "the service does not run"}
	case errors.As(err, &exit) && exit.Signal != 0:
		return answer{Exit: signaled + int(exit.Signal)}
	case errors.As(err, &exit) && exit.ExitCode > 0:
		return answer{Exit: exit.ExitCode}
	}
	return answer{Exit: failed, Error: err.Error()}
}
