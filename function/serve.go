package function

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/wire"
)

// What follows runs in a function's process.

// A process serves a function if its first argument and this variable of its environment say so,
// both.
const (
	workerName = "sandbox-function"
	workerVar  = "_SANDBOX_FUNCTION"
)

// served is the function that this process serves.
type served struct {
	name  string
	conn  *wire.Conn
	found atomic.Bool // it was registered
}

func init() {
	if s, ok := asWorker(); ok {
		go s.keepFromMain()
	}
}

// keepFromMain ends the process if the function is not registered and so the program's main begins,
// which is not meant to run here. Only the first goroutine's stack shows when a program's packages
// have been initialised.
func (s *served) keepFromMain() {
	stacks := make([]byte, 64<<10)
	for ; !s.found.Load(); time.Sleep(time.Millisecond) {
		if n := runtime.Stack(stacks, true); bytes.Contains(stacks[:n], []byte("\nmain.main()\n")) {
			s.giveUp(fmt.Errorf("%q is not registered in its own process: call function.New whenever packages are initialised, and under no condition", s.name))
		}
	}
}

// asWorker returns the function that this process serves, and whether it serves one.
var asWorker = func() func() (*served, bool) {
	find := sync.OnceValue(func() *served {
		if len(os.Args) != 5 || os.Args[1] != workerName || os.Getenv(workerVar) != "1" || gainedPrivileges() {
			return nil
		}
		os.Unsetenv(workerVar)
		os.Unsetenv(program.LoaderVar)
		fd, err1 := strconv.Atoi(os.Args[3])
		limit, err2 := strconv.ParseInt(os.Args[4], 10, 64)
		if errors.Join(err1, err2) != nil {
			return nil
		}
		os.NewFile(uintptr(fd+1), "program").Close() // the file of this program
		closeOnExec(fd)
		return &served{name: os.Args[2], conn: wire.NewConn(os.NewFile(uintptr(fd), "calls"), limit)}
	})
	return func() (*served, bool) { s := find(); return s, s != nil }
}()

// servedCall is one call.
type servedCall struct {
	request wire.Message
	ended   context.Context // done when the caller does not want the answer any more
	streams []io.Reader     // of the answer
	pipes   chan []*os.File // for those, from the host
}

// context returns the function's context. until is its deadline in Unix nanoseconds, 0 for none.
func (c *servedCall) context(until int64) (context.Context, context.CancelFunc) {
	if until > 0 {
		return context.WithDeadline(c.ended, time.Unix(0, until))
	}
	return context.WithCancel(c.ended)
}

// serve serves calls, one after the other, until the host hangs up. It does not return.
func (s *served) serve(maxFiles int, f func(*servedCall) (wire.Message, error)) {
	s.found.Store(true)
	s.send(wire.Message{Kind: wire.Hello})
	cancel := func() {}
	var c *servedCall
	for {
		m, err := s.conn.Receive(maxFiles, wire.Call, wire.Cancel, wire.Pipes)
		switch {
		case errors.Is(err, io.EOF):
			os.Exit(0)
		case err != nil:
			s.giveUp(err)
		case m.Kind == wire.Cancel:
			cancel() // for a call that is over already, if it comes late
		case m.Kind == wire.Pipes:
			c.pipes <- m.Files
		default:
			var ctx context.Context
			ctx, cancel = context.WithCancel(context.Background())
			c = &servedCall{request: m, ended: ctx, pipes: make(chan []*os.File, 1)}
			go s.one(c, f)
		}
	}
}

func (s *served) giveUp(err error) {
	fmt.Fprintln(os.Stderr, "sandbox: function:", err)
	os.Exit(125)
}

func (s *served) send(m wire.Message) {
	if err := s.conn.Send(m); err != nil {
		s.giveUp(err)
	}
}

// one serves a call and sends the answer, or the error.
func (s *served) one(c *servedCall, f func(*servedCall) (wire.Message, error)) {
	returned := false
	defer func() {
		if !returned {
			s.sendTrouble(wire.Panicked, wire.Trouble{Text: panicText(recover()), Stack: string(debug.Stack())})
		}
	}()
	m, err := f(c)
	returned = true
	if err == nil {
		if err = s.conn.Send(m); err != nil && !errors.Is(err, wire.ErrTooLarge) {
			s.giveUp(err)
		}
	}
	m.Close() // the files are the host's now
	if err != nil || len(c.streams) == 0 {
		c.request.Close()
	}
	if err != nil {
		for _, stream := range c.streams {
			if f, ok := stream.(io.Closer); ok {
				f.Close()
			}
		}
		s.sendTrouble(wire.Failure, wire.Trouble{Text: err.Error(), TooLarge: errors.Is(err, wire.ErrTooLarge), Late: errors.Is(err, context.DeadlineExceeded)})
	} else if len(c.streams) > 0 {
		text := ""
		if err := c.copyStreams(); err != nil {
			text = err.Error()
		}
		c.request.Close()
		s.sendTrouble(wire.Streamed, wire.Trouble{Text: text})
	}
}

func (s *served) sendTrouble(kind wire.Kind, t wire.Trouble) {
	t.Text, t.Stack = t.Text[:min(len(t.Text), wire.MaxText)], t.Stack[:min(len(t.Stack), wire.MaxText)]
	body, err := wire.Marshal(t)
	if err != nil {
		s.giveUp(err)
	}
	s.send(wire.Message{Kind: kind, Body: body})
}

func panicText(v any) string {
	if v == nil {
		return "runtime.Goexit"
	}
	return fmt.Sprint(v)
}

// copyStreams copies the streams of the answer. The host sends their pipes, or hangs up.
func (c *servedCall) copyStreams() error {
	pipes := <-c.pipes
	if len(pipes) != len(c.streams) {
		return fmt.Errorf("%d pipes for %d streams", len(pipes), len(c.streams))
	}
	errs := make([]error, len(c.streams))
	var wait sync.WaitGroup
	for i, from := range c.streams {
		wait.Go(func() {
			errs[i] = copyStream(pipes[i], from)
			pipes[i].Close()
			if f, ok := from.(io.Closer); ok {
				f.Close()
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// copyStream copies in pieces that are large enough to be worth a switch to the other process.
func copyStream(to *os.File, from io.Reader) error {
	growPipe(to)
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, pipeSize))
	return err
}

// pipeSize is the largest pipe that an ordinary user may ask for: /proc/sys/fs/pipe-max-size.
const pipeSize = 1 << 20

func isReset(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
