//go:build linux

// Package guest is PID 1 of a run that has a kernel of its own, in a container of gVisor: this
// program's own file, which starts the command there, reaps, and reports the command's start and
// its end. It looks at nothing but its arguments and one variable.
package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/spec"
)

// name is the first argument and variable the only one of the environment: they make a process of
// this program such a PID 1.
const (
	name     = "sandbox-guest"
	variable = "_SANDBOX_GUEST"
)

// ReportFD is the descriptor to which it reports.
const ReportFD = 3

// Conduct is how the command is started.
type Conduct struct {
	Dir      string
	UID, GID int
	Groups   []int
	Env      int // how many of PID 1's arguments are the command's environment, before its own
}

// Line returns the arguments and the environment of PID 1 for a command with the given ones. The
// command's environment is among the arguments, because PID 1's loader and Go's runtime would heed
// what is in it, such as LD_PRELOAD.
func (c Conduct) Line(argv, env []string) (args, environ []string) {
	c.Env = len(env)
	b, err := json.Marshal(c)
	if err != nil { // it has nothing but numbers and a string
		panic(err)
	}
	return slices.Concat([]string{name}, env, argv), []string{variable + "=" + string(b)}
}

// Report is what PID 1 says: once that the command was executed, or why not, and once how it ended.
type Report struct {
	Started bool
	Dir     bool          `json:",omitempty"` // Errno is of Conduct.Dir
	Errno   syscall.Errno `json:",omitempty"`

	Ended              bool               `json:",omitempty"`
	Status             syscall.WaitStatus `json:",omitempty"`
	UserCPU, SystemCPU time.Duration      `json:",omitempty"`
	MaxRSS             uint64             `json:",omitempty"` // bytes
}

// mostReports is more than all reports of a run take.
const mostReports = 4 << 10

// Reports decodes what a run says, of which no more is read than reports can take.
func Reports(r io.Reader) *json.Decoder { return json.NewDecoder(io.LimitReader(r, mostReports)) }

func init() {
	how, ok := os.LookupEnv(variable)
	if len(os.Args) < 3 || os.Args[1] != name || !ok || forkserver.Privileged() {
		return
	}
	runtime.LockOSThread() // the command inherits from this thread
	if err := serve(how, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: PID 1 in gVisor:", err)
		unix.Exit(1)
	}
	unix.Exit(0)
}

func serve(how string, args []string) error {
	var c Conduct
	if err := json.Unmarshal([]byte(how), &c); err != nil {
		return err
	}
	if c.Env < 0 || c.Env >= len(args) {
		return errors.New("there is no command")
	}
	unix.CloseOnExec(ReportFD)
	out := json.NewEncoder(os.NewFile(ReportFD, "reports"))
	// No signal that a run of root sends it does anything.
	signal.Notify(make(chan os.Signal, 1))
	pid, failed, err := c.start(args[c.Env:], args[:c.Env])
	if err != nil {
		return err
	}
	if failed != nil {
		return out.Encode(failed)
	}
	if err := out.Encode(Report{Started: true}); err != nil {
		return err
	}
	end, err := await(pid)
	if err != nil {
		return err
	}
	return out.Encode(end)
}

// start starts the command, without capabilities: executing a file gives root what the bounding set
// has, so that is emptied.
func (c *Conduct) start(argv, env []string) (pid int, failed *Report, err error) {
	if err := dropBounding(); err != nil {
		return 0, nil, err
	}
	groups := make([]uint32, len(c.Groups))
	for i, gid := range c.Groups {
		groups[i] = uint32(gid)
	}
	attr := &syscall.ProcAttr{
		Dir: c.Dir, Env: env, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID), Groups: groups}},
	}
	var errno error = syscall.ENOENT
	for _, path := range spec.LookupList(argv[0], env) {
		pid, e := syscall.ForkExec(path, argv, attr)
		switch e {
		case nil:
			return pid, nil, nil
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			errno = e // as execvp(3): another place may have one
		default:
			return 0, c.failure(e), nil
		}
	}
	return 0, c.failure(errno), nil
}

// failure says what a command could not be started for.
func (c *Conduct) failure(err error) *Report {
	errno, _ := err.(syscall.Errno)
	info, statErr := os.Stat(c.Dir)
	return &Report{Errno: errno, Dir: statErr != nil || !info.IsDir()}
}

// dropBounding takes all capabilities from the bounding set.
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

// await reaps until the command has ended.
func await(pid int) (Report, error) {
	for {
		var status unix.WaitStatus
		var used unix.Rusage
		switch got, err := unix.Wait4(-1, &status, unix.WALL, &used); {
		case err == unix.EINTR:
		case err != nil:
			return Report{}, fmt.Errorf("wait4: %w", err)
		case got == pid:
			return Report{
				Ended: true, Status: syscall.WaitStatus(status),
				UserCPU: time.Duration(used.Utime.Nano()), SystemCPU: time.Duration(used.Stime.Nano()), MaxRSS: uint64(used.Maxrss) << 10,
			}, nil
		}
	}
}
