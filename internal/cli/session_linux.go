package cli

// A run with a name: this process has its commands executed for others of its user. For each
// "sandbox exec" there is a connection, on which it sends a request, and gets an answer when its
// command has ended. An empty answer comes before, with the other end of the command's terminal.
// The end of the connection is the end of the command.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/named"
)

// request asks for a command. The standard streams come with it, unless it has a terminal. Strings
// of the command line need not be UTF-8, which JSON is.
type request struct {
	Flags, Env, Command [][]byte
	Rows, Cols          uint16 // of the terminal
}

// interruption asks to end the command for a signal that the asking process got.
type interruption struct{ Signal syscall.Signal }

// exchangeTimeout is far more than a message takes between processes of one machine.
const exchangeTimeout = 10 * time.Second

// session is a run with a name.
type session struct {
	s        *settings
	listener *named.Listener
	process  *sandbox.Process
	serving  sync.WaitGroup

	over   context.Context // ends when the run has
	finish context.CancelFunc
	status int // of the run's end
	reason error
}

// newSession takes the run's name. Without one it returns nil.
func newSession(s *settings) (*session, error) {
	if s.name == "" {
		return nil, nil
	}
	l, err := named.Listen(s.name)
	if err != nil {
		return nil, fmt.Errorf("-name: %w", err)
	}
	n := &session{s: s, listener: l}
	n.over, n.finish = context.WithCancel(context.Background())
	return n, nil
}

// serve begins to execute commands in the run, which has started.
func (n *session) serve(p *sandbox.Process) {
	if n == nil {
		return
	}
	n.process = p
	n.serving.Go(func() {
		for {
			c, err := n.listener.Accept()
			switch {
			case err == nil:
				n.serving.Go(func() { n.handle(c) })
			case n.over.Err() != nil:
				return
			default:
				time.Sleep(exchangeTimeout / 100) // out of descriptors, or memory
			}
		}
	})
}

// end gives the name up, and has those who wait answered: how the run ended is known.
func (n *session) end(status int, reason error) {
	if n == nil {
		return
	}
	n.status, n.reason = status, reason
	n.finish()
	if err := n.listener.Close(); err != nil {
		complain(fmt.Errorf("-name: %w", err))
	}
	n.serving.Wait()
}

// handle does what is asked for on a connection.
func (n *session) handle(c *named.Conn) {
	defer c.Close()
	q := &request{}
	_ = c.SetReadDeadline(time.Now().Add(exchangeTimeout))
	waited := context.AfterFunc(n.over, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	files, err := c.Receive(q)
	defer closeFiles(files)
	if !waited() || err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() { // until the connection ends
		for {
			var i interruption
			if _, err := c.Receive(&i); err != nil {
				cancel(err)
				return
			}
			cancel(interrupt{i.Signal})
		}
	}()
	a := n.execute(ctx, q, files, c)
	closeFiles(files) // before the answer: who reads them may wait for both
	_ = c.SetWriteDeadline(time.Now().Add(exchangeTimeout))
	_ = c.Send(a)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// execute executes a command and waits for its end.
func (n *session) execute(ctx context.Context, q *request, files []*os.File, c *named.Conn) *answer {
	s, err := parseExec(append(append(stringsOf(q.Flags), n.s.name, "--"), stringsOf(q.Command)...))
	if err == nil && !s.tty && len(files) != 3 {
		err = errors.New("the standard streams are missing")
	}
	if err != nil {
		return &answer{Status: statusSetup, Reason: err.Error()}
	}
	s.memory, s.cpuTime = n.s.memory, n.s.cpuTime // for the reason
	s.add(sandbox.WithEnv(stringsOf(q.Env)...))
	var result *sandbox.Result
	if s.tty {
		result, err = n.onTerminal(ctx, s, q, c)
	} else {
		result, err = n.onStreams(ctx, s, [3]*os.File(files))
	}
	if errors.Is(err, sandbox.ErrRunEnded) || errors.Is(err, os.ErrProcessDone) {
		return n.ended(result)
	}
	status, reason := outcome(s, result, err, context.Cause(ctx))
	a := &answer{Status: status, Result: result}
	if reason != nil {
		a.Reason = reason.Error()
	}
	return a
}

func (n *session) onStreams(ctx context.Context, s *settings, files [3]*os.File) (*sandbox.Result, error) {
	opts, copied, err := streams(files)
	if err != nil {
		return nil, err
	}
	defer copied()
	x, err := n.process.Exec(ctx, append(s.opts, opts...)...)
	if err != nil {
		return nil, err
	}
	return x.Wait()
}

// onTerminal lets the asking process have the other end of the terminal itself.
func (n *session) onTerminal(ctx context.Context, s *settings, q *request, c *named.Conn) (*sandbox.Result, error) {
	x, err := n.process.Exec(ctx, append(s.opts, sandbox.WithTerminal(q.Rows, q.Cols))...)
	if err != nil {
		return nil, err
	}
	_ = c.SetWriteDeadline(time.Now().Add(exchangeTimeout))
	if err := c.Send(answer{}, x.Terminal().(syscall.Conn)); err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x.Wait()
}

// ended waits for the end of the run and tells a command of it that has ended with it.
func (n *session) ended(result *sandbox.Result) *answer {
	<-n.over.Done()
	a := &answer{Status: n.status, Reason: "the run has ended", Result: result}
	switch {
	case n.reason != nil:
		a.Reason += ": " + n.reason.Error()
	case result == nil:
		a.Status = statusSetup // the command was not even started
	default:
		a.Status = commandStatus(result)
	}
	return a
}

func stringsOf(raw [][]byte) (all []string) {
	for _, b := range raw {
		all = append(all, string(b))
	}
	return all
}

func bytesOf(all []string) (raw [][]byte) {
	for _, s := range all {
		raw = append(raw, []byte(s))
	}
	return raw
}
