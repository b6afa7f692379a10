//go:build linux && cgo

package wall

import (
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
)

func init() {
	// libcontainer starts "/proc/self/exe init". A user's own program may have an init
	// subcommand, so the argument alone is not enough.
	if len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" && !forkserver.Privileged() {
		// A container that the user's program makes itself has another level.
		if os.Getenv("_LIBCONTAINER_LOGLEVEL") == logLevel {
			// libcontainer sets the parent death signal only for the first of its three
			// processes. This is the third, which may wait forever to be told to go on.
			// If the parent is dead already, libcontainer finds its pipe closed.
			_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		}
		libcontainer.Init()
	}
}

// logLevel is libcontainer's default level in a different spelling, which marks the processes of a
// cell among those of other containers that this program starts.
const logLevel = "004"

// Libcontainer returns the Wall that needs no installed runtime, but cgo: libcontainer is linked
// into this program. Without cgo it is nil.
func Libcontainer() Wall { return linked{} }

// linked is the Wall of libcontainer.
type linked struct{}

func (linked) Name() string { return "libcontainer" }

// started is a process of libcontainer and the container that it is PID 1 of.
type started struct {
	*libcontainer.Process
	container *libcontainer.Container
}

func (s *started) Destroy() error { return s.container.Destroy() }

func (linked) Start(c *Container) (Process, error) {
	conf := containerConfig(c)
	// The id is also the name of a keyring, which without a user namespace belongs to the whole
	// host.
	container, err := libcontainer.Create(c.Dir, c.ID, conf)
	if err != nil {
		return nil, fmt.Errorf("describing it to libcontainer: %w", err)
	}
	conf.RootlessEUID = true // see containerConfig: Create refuses it without a user namespace
	s := &started{container: container, Process: &libcontainer.Process{
		Args:       c.Args,
		Env:        c.Env,
		Cwd:        "/",
		Stdout:     c.Stderr,
		Stderr:     c.Stderr,
		ExtraFiles: c.Files,
		LogLevel:   logLevel,
		Init:       true,
	}}
	if err := s.run(c.Adopt); err != nil {
		reapStage(interpret(err).child)
		_ = s.Destroy()
		return nil, err
	}
	return s, nil
}

// run does what libcontainer's own Run does, except that it calls adopt in between and leaves no
// process behind if it fails.
func (s *started) run(adopt func(pid int) error) error {
	if err := s.container.Start(s.Process); err != nil {
		return err
	}
	err := s.adopt(adopt)
	if err == nil {
		err = s.container.Exec()
	}
	if err != nil {
		_ = s.Signal(unix.SIGKILL)
		_, _ = s.Wait()
	}
	return err
}

func (s *started) adopt(adopt func(pid int) error) error {
	if adopt == nil {
		return nil
	}
	pid, err := s.Pid()
	if err != nil {
		return err
	}
	return adopt(pid)
}

// reapStage waits for libcontainer's second process, a child of this one (CLONE_PARENT), if that is
// the one that failed. libcontainer has not been told its process id yet and does not wait for it.
func reapStage(pid int) {
	if pid == 0 {
		return
	}
	for range 100 {
		if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err != nil && err != unix.EINTR {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
