package forkserver

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Name is the argument, and Env the environment, that make a process of this binary a fork server.
// It takes both, because a user's program may have an argument of any name.
const (
	Name = "sandbox-forkserver"
	Env  = "_SANDBOX_FORKSERVER=1"
)

// ControlFD is the fork server's descriptor of its control socket. It is followed by this program's
// own file, which the fork server was executed from, and then by a file, if any, that it only holds
// open until it ends.
const ControlFD = 3

func init() {
	if len(os.Args) == 2 && os.Args[1] == Name && os.Getenv("_SANDBOX_FORKSERVER") == "1" && !Privileged() {
		err := closeLeaked()
		if err == nil {
			err = serve(ControlFD)
		}
		// Not os.Exit, which does more: the race detector sleeps for a second first.
		if err != nil {
			fmt.Fprintln(os.Stderr, "sandbox: fork server:", err)
			unix.Exit(1)
		}
		unix.Exit(0)
	}
}

// Privileged reports whether this program was executed with more rights than its caller has, as a
// set-uid program is. Then nothing that the caller passes may be trusted: getauxval(3), AT_SECURE.
func Privileged() bool {
	const atSecure = 23
	vector, err := unix.Auxv()
	return err != nil || slices.ContainsFunc(vector, func(v [2]uintptr) bool { return v[0] == atSecure && v[1] != 0 })
}

// serve answers requests until the control socket closes, which it also does when the host dies.
// PID 1's exit then ends everything in the cell.
//
// The requests are served by a child that has a single thread. In a process with several threads,
// as the Go runtime makes it, every clone is expensive: afterwards each page that a thread writes
// to has to be copied, and all CPUs that run one have to be interrupted. That took half of the time
// of a run.
func serve(control int) error {
	runtime.LockOSThread()
	os.Clearenv()
	unix.CloseOnExec(control)
	unix.CloseOnExec(control + 2)
	if err := errors.Join(DropPriority(0), heedSignals()); err != nil {
		return err
	}
	// The kernel reaps the children: the host sees their end through pidfds.
	signal.Ignore(syscall.SIGCHLD, syscall.SIGPIPE)
	// The thread that started this process may end before the host does.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_PDEATHSIG): %w", err)
	}
	// No process in a run may trace or inspect this process or its copies.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	m, err := program.NewMachine()
	if err != nil {
		return err
	}
	home, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the network namespace: %w", err)
	}
	s := newServer(control, home, m)
	if s.spared, err = spare(m.Address()); err != nil {
		return err
	}
	// The host learns this process's pid from the greeting.
	if _, err := unix.Write(control, []byte{1}); err != nil {
		return fmt.Errorf("greeting the host: %w", err)
	}
	debug.SetGCPercent(-1) // the child can't collect garbage, and need not
	growStack()
	pid, errno := program.Fork(s.loop)
	if errno != 0 {
		return fmt.Errorf("clone: %w", errno)
	}
	unix.Close(control)
	err = await(pid)
	if os.Getpid() == 1 {
		endAll()
	}
	return err
}

// endAll ends all that is left in the cell, before this process closes its open files: when PID 1
// exits, the kernel closes its files first and kills the other processes afterwards (kernel/exit.c,
// do_exit).
func endAll() {
	_ = unix.Kill(-1, unix.SIGKILL)
	for { // SIGCHLD is ignored, so wait(2) blocks until there are no children
		if _, err := unix.Wait4(-1, nil, unix.WALL, nil); err == unix.ECHILD {
			return
		}
	}
}

// await waits for the end of the child that serves. Its status is the only sign that something
// other than the end of the host has ended it.
func await(pid int) error {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("wait4: %w", err)
		case status.Signaled():
			return fmt.Errorf("ended by signal %d (%v)", status.Signal(), status.Signal())
		case status.ExitStatus() == exitConfused:
			return errors.New("a request made no sense")
		case status.ExitStatus() != 0:
			return fmt.Errorf("exit status %d", status.ExitStatus())
		}
		return nil
	}
}

// growStack makes the stack large enough for the child, where it can't grow.
//
//go:noinline
func growStack() byte {
	var room [64 << 10]byte
	for i := range room {
		room[i] = byte(i)
	}
	return room[len(room)-1]
}
