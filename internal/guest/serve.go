//go:build linux

package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/family"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

func init() {
	if len(os.Args) != 2 || os.Args[1] != name || os.Getenv(variable) != "1" || forkserver.Privileged() {
		return
	}
	runtime.LockOSThread() // commands inherit from this thread
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: PID 1 in gVisor:", err)
		unix.Exit(1)
	}
	unix.Exit(0)
}

// server is PID 1.
type server struct {
	mu       sync.Mutex // held while one is started, has a signal sent, or is reaped
	first    *command
	commands map[int]*command // by their pids
}

// command is one that has not been reaped.
type command struct {
	*Command
	socket  int
	streams []uintptr
	pid     int
	ended   chan struct{}   // closed once that was reported
	family  []family.Member // to kill at its end
}

// serve starts commands until the first one has ended, or nobody can ask for another one.
func serve() error {
	unix.CloseOnExec(ControlFD)
	// Root of the run has fewer capabilities, so it can't get at what this process has:
	// ptrace(2). Nor can anybody else, from now on.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	// Signals that a run of root sends do nothing, as far as they can be handled.
	signal.Notify(make(chan os.Signal, 1))
	if err := dropBounding(); err != nil {
		return err
	}
	s := &server{commands: map[int]*command{}}
	for {
		c, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.start(c); err != nil {
			return err
		}
	}
}

// dropBounding takes all capabilities from the bounding set, because executing a file gives root
// what is in it.
func dropBounding() error {
	for n := uintptr(0); n < 64; n++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err == unix.EINVAL {
			break // there are no more
		} else if err != nil {
			return fmt.Errorf("prctl(PR_CAPBSET_DROP): %w", err)
		}
	}
	return nil
}

// streamsFrom is how many descriptors come before a command's streams: its socket and description.
const streamsFrom = 2

// receive waits for the next command.
func receive() (*command, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4*(streamsFrom+3)))
	n, oobn, _, _, err := unix.Recvmsg(ControlFD, b[:], oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(ControlFD, b[:], oob, unix.MSG_CMSG_CLOEXEC)
	}
	switch {
	case err != nil:
		return nil, os.NewSyscallError("recvmsg", err)
	case n == 0:
		return nil, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		fds = append(fds, more...)
	}
	if len(fds) != streamsFrom+3 {
		return nil, fmt.Errorf("%d descriptors came with a command", len(fds))
	}
	of := os.NewFile(uintptr(fds[1]), "command")
	defer of.Close()
	c := &command{socket: fds[0], ended: make(chan struct{})}
	for _, fd := range fds[streamsFrom:] {
		c.streams = append(c.streams, uintptr(fd))
	}
	c.Command, err = readCommand(of)
	return c, err
}

// start starts a command and reports that. It returns an error if that is the first one, and can't
// be started.
func (s *server) start(c *command) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var failed error
	c.pid, failed = c.exec()
	for _, fd := range c.streams {
		unix.Close(int(fd))
	}
	if failed != nil {
		c.report(c.failure(failed))
		unix.Close(c.socket)
		if s.first == nil {
			return failed
		}
		return nil
	}
	c.report(program.Event{Kind: program.Started})
	s.commands[c.pid] = c
	if s.first == nil {
		s.first = c
		go s.reap()
	}
	go s.heed(c)
	return nil
}

// exec starts the command in a session of its own.
func (c *command) exec() (pid int, err error) {
	groups := make([]uint32, len(c.Groups))
	for i, gid := range c.Groups {
		groups[i] = uint32(gid)
	}
	attr := &syscall.ProcAttr{
		Dir: c.Dir, Env: c.Env, Files: c.streams,
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID), Groups: groups}},
	}
	err = syscall.ENOENT
	for _, path := range spec.LookupList(c.Argv[0], c.Env) {
		pid, e := syscall.ForkExec(path, c.Argv, attr)
		switch e {
		case nil:
			return pid, nil
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			err = e // as execvp(3): another place may have one
		default:
			return 0, e
		}
	}
	return 0, err
}

// failure says why a command could not be started.
func (c *command) failure(err error) program.Event {
	e := program.Event{Kind: program.Failed}
	if errno, ok := err.(syscall.Errno); ok {
		e.Errno = uint32(errno)
	}
	if info, err := os.Stat(c.Dir); err != nil || !info.IsDir() {
		e.Index = InDir
	}
	return e
}

// report sends an event to the host, which may not listen any more.
func (c *command) report(e program.Event) {
	_ = unix.Sendto(c.socket, e.Marshal(), unix.MSG_NOSIGNAL, nil)
}

// reap reaps until the first command has ended, and then ends this process with all others.
func (s *server) reap() {
	for {
		// A process keeps its number until it is reaped, which is when nobody sends it
		// signals.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if err != nil && err != unix.EINTR {
			fmt.Fprintln(os.Stderr, "sandbox: PID 1 in gVisor: waitid:", err)
			unix.Exit(1)
		}
		s.mu.Lock()
		// A child may make PID 1 its tracer, and is waited for when it stops: ptrace(2).
		var status unix.WaitStatus
		var used unix.Rusage
		if pid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOHANG, &used); err == nil && pid > 0 && !status.Stopped() {
			s.ended(s.commands[pid], status, &used)
		}
		s.mu.Unlock()
	}
}

// ended reports the end of a command, which is nil for another process.
func (s *server) ended(c *command, status unix.WaitStatus, used *unix.Rusage) {
	if c == nil {
		return
	}
	delete(s.commands, c.pid)
	for _, m := range c.family {
		m.Kill()
	}
	c.report(program.Event{
		Kind: program.Exited, Status: uint32(status),
		UserCPU: time.Duration(used.Utime.Nano()), SystemCPU: time.Duration(used.Stime.Nano()), MaxRSS: uint64(used.Maxrss) << 10,
	})
	close(c.ended)
	if c == s.first {
		unix.Exit(0)
	}
}

// heed does what the host says about a command, until nobody can say more.
func (s *server) heed(c *command) {
	signal := func(sig unix.Signal) error { return s.signal(c, sig) }
	for {
		var b [2]byte
		n, err := unix.Read(c.socket, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != len(b) {
			family.Kill(c.pid, signal)
			<-c.ended
			unix.Close(c.socket)
			return
		}
		if b[0] == stop {
			s.remember(c)
		}
		_ = signal(unix.Signal(b[1]))
	}
}

// signal sends a signal to a command that has not been reaped.
func (s *server) signal(c *command, sig unix.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-c.ended:
		return unix.ESRCH
	default:
		return unix.Kill(c.pid, sig)
	}
}

// remember notes what the command has started by now, to be killed at its end.
func (s *server) remember(c *command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.family = family.Of(c.pid) // of one that has ended, nobody asks for it any more
}
