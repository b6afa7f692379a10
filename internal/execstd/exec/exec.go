//go:build linux

package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/stdio"
)

// What does not start processes is that of os/exec.
var (
	LookPath = exec.LookPath
	ErrDot   = exec.ErrDot
)

type Error = exec.Error

var ErrWaitDelay = sandbox.ErrWaitDelay

type prefixSuffixSaver = stdio.PrefixSuffix

// CacheEnv names the variable that has the go command's cache on the host, which runs have at
// GOCACHE.
const CacheEnv = "SANDBOX_TEST_CACHE"

// Cmd has the documentation of os/exec's Cmd.
type Cmd struct {
	Path         string
	Args         []string
	Env          []string
	Dir          string
	Stdin        io.Reader
	Stdout       io.Writer
	Stderr       io.Writer
	ExtraFiles   []*os.File
	SysProcAttr  *syscall.SysProcAttr
	Process      *Process
	ProcessState *ProcessState
	Err          error
	Cancel       func() error
	WaitDelay    time.Duration

	// StopSignal is for a Cancel that does nothing but send a signal.
	StopSignal os.Signal

	ctx     context.Context
	started atomic.Bool
	watched chan error
	pipes   []*pipe
}

// Process is what the tests use of os.Process.
type Process struct {
	*sandbox.Process
	Pid int
}

// ProcessState is what the tests use of os.ProcessState.
type ProcessState struct {
	result *sandbox.Result
	pid    int
}

func (s *ProcessState) ExitCode() int {
	if s == nil {
		return -1
	}
	return s.result.ExitCode
}

func (s *ProcessState) Pid() int      { return s.pid }
func (s *ProcessState) Exited() bool  { return s.result.Signal == 0 }
func (s *ProcessState) Success() bool { return s.result.Signal == 0 && s.result.ExitCode == 0 }

func (s *ProcessState) String() string {
	if s.result.Signal != 0 {
		return "signal: " + s.result.Signal.String()
	}
	return fmt.Sprintf("exit status %d", s.result.ExitCode)
}

// ExitError has the documentation of os/exec's ExitError.
type ExitError struct {
	*ProcessState
	Stderr []byte
}

func (e *ExitError) Error() string { return e.ProcessState.String() }

func Command(name string, arg ...string) *Cmd {
	std := exec.Command(name, arg...)
	return &Cmd{Path: std.Path, Args: std.Args, Err: std.Err}
}

func CommandContext(ctx context.Context, name string, arg ...string) *Cmd {
	c := Command(name, arg...)
	c.ctx, c.Cancel = ctx, c.kill
	return c
}

func (c *Cmd) kill() error { return c.Process.Kill() }

// killsAtOnce reports whether Cancel is as CommandContext sets it, which is what a sandbox does by
// itself at the end of its context.
func (c *Cmd) killsAtOnce() bool {
	return c.Cancel != nil && reflect.ValueOf(c.Cancel).Pointer() == reflect.ValueOf(c.kill).Pointer()
}

func (c *Cmd) String() string {
	return (&exec.Cmd{Path: c.Path, Args: c.Args, Err: c.Err}).String()
}

func (c *Cmd) Environ() []string { return (&exec.Cmd{Env: c.Env, Dir: c.Dir}).Environ() }

// options describe the command, and a sandbox that has no walls for it.
func (c *Cmd) options() ([]sandbox.Option, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	path, env, args := c.Path, c.Env, []string(nil)
	if !strings.Contains(path, "/") {
		path = "./" + path // is not looked up once more
	}
	if len(c.Args) > 0 {
		args = c.Args[1:]
	}
	if env == nil {
		env = c.Environ()
	}
	opts := []sandbox.Option{
		sandbox.WithRootfs(sandbox.LayersRootfs("/")), sandbox.WithNetwork(sandbox.NetworkHost), sandbox.WithUser(0, 0),
		sandbox.WithBind(os.TempDir(), os.TempDir()), sandbox.WithBind(os.Getenv(CacheEnv), os.Getenv("GOCACHE")),
		sandbox.WithCommand(path, args...), sandbox.WithDir(dir), sandbox.WithEnv(env...),
		sandbox.WithExtraFiles(c.ExtraFiles...), sandbox.WithWaitDelay(c.WaitDelay),
	}
	if a := c.SysProcAttr; a != nil && a.Credential != nil {
		opts = append(opts, sandbox.WithUser(int(a.Credential.Uid), int(a.Credential.Gid)))
	}
	if c.StopSignal != nil {
		grace := c.WaitDelay
		if grace == 0 {
			grace = math.MaxInt64
		}
		opts = append(opts, sandbox.WithStopSignal(c.StopSignal, grace))
	}
	return append(opts, c.streams()...), nil
}

func (c *Cmd) streams() (opts []sandbox.Option) {
	if c.Stdin != nil {
		opts = append(opts, sandbox.WithStdin(c.Stdin))
	}
	if c.Stdout != nil {
		opts = append(opts, sandbox.WithStdout(c.Stdout))
	}
	if c.Stderr != nil {
		opts = append(opts, sandbox.WithStderr(c.Stderr))
	}
	for _, p := range c.pipes {
		opts = append(opts, p.option)
	}
	return opts
}

func (c *Cmd) Start() error {
	if c.started.Swap(true) {
		return errors.New("exec: already started")
	}
	switch {
	case c.Err != nil:
		return c.Err
	case c.Path == "":
		return errors.New("exec: no command")
	}
	opts, err := c.options()
	if err != nil {
		return err
	}
	ctx := c.ctx
	if ctx == nil {
		ctx = context.Background()
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	byItself := c.StopSignal != nil || c.killsAtOnce()
	if !byItself {
		ctx = context.WithoutCancel(ctx)
	}
	p, err := sandbox.New(opts...).Start(ctx)
	if err != nil {
		return err
	}
	c.Process = &Process{p, p.PID()}
	if c.ctx != nil && !byItself {
		c.watched = make(chan error, 1)
		go c.watch()
	}
	return nil
}

// watch calls Cancel at the end of the context, and kills after WaitDelay.
func (c *Cmd) watch() {
	select {
	case <-c.Process.Ended():
		c.watched <- nil
		return
	case <-c.ctx.Done():
	}
	var err error
	if c.Cancel != nil {
		if err = c.Cancel(); err == nil {
			err = c.ctx.Err()
		} else if errors.Is(err, os.ErrProcessDone) {
			err = nil
		} else {
			err = fmt.Errorf("exec: canceling Cmd: %w", err)
		}
	}
	if c.WaitDelay != 0 {
		select {
		case <-c.Process.Ended():
		case <-time.After(c.WaitDelay):
			_ = c.Process.Kill()
		}
	}
	c.watched <- err
}

func (c *Cmd) Wait() error {
	if c.Process == nil {
		return errors.New("exec: not started")
	}
	if c.ProcessState != nil {
		return errors.New("exec: Wait was already called")
	}
	result, err := c.Process.Wait()
	if result == nil {
		return err
	}
	c.ProcessState = &ProcessState{result, c.Process.Pid}
	if !c.ProcessState.Success() {
		err = &ExitError{ProcessState: c.ProcessState}
	}
	if c.watched != nil {
		if watched := <-c.watched; err == nil {
			err = watched
		}
	}
	return err
}

func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

func (c *Cmd) Output() ([]byte, error) {
	var stdout bytes.Buffer
	c.Stdout = &stdout
	var stderr *prefixSuffixSaver
	if c.Stderr == nil {
		stderr = &prefixSuffixSaver{N: 32 << 10}
		c.Stderr = stderr
	}
	err := c.Run()
	var exit *ExitError
	if stderr != nil && errors.As(err, &exit) {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

func (c *Cmd) CombinedOutput() ([]byte, error) {
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// pipe is a pipe of the run, which there is once it has been started.
type pipe struct {
	option sandbox.Option
	end    func() any
}

func (c *Cmd) pipe(option sandbox.Option, end func() any) *pipe {
	p := &pipe{option, end}
	c.pipes = append(c.pipes, p)
	return p
}

func (p *pipe) Read(b []byte) (int, error)  { return p.end().(io.Reader).Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.end().(io.Writer).Write(b) }
func (p *pipe) Close() error                { return p.end().(io.Closer).Close() }
func (p *pipe) Fd() uintptr                 { return p.end().(*os.File).Fd() }

func (c *Cmd) StdinPipe() (io.WriteCloser, error) {
	return c.pipe(sandbox.WithStdinPipe(), func() any { return c.Process.StdinPipe() }), nil
}

func (c *Cmd) StdoutPipe() (io.ReadCloser, error) {
	return c.pipe(sandbox.WithStdoutPipe(), func() any { return c.Process.StdoutPipe() }), nil
}

func (c *Cmd) StderrPipe() (io.ReadCloser, error) {
	return c.pipe(sandbox.WithStderrPipe(), func() any { return c.Process.StderrPipe() }), nil
}
