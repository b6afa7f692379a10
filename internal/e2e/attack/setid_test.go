//go:build linux

package attack

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// A set-uid program in a writable bind would have power on the host, where it belongs to the owner
// of the bind's directory.
func TestAttackSetID(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	run := func(opts ...sandbox.Option) (*sandbox.Sandbox, string) {
		dir := testkit.OpenDir(t)
		return attacker("set-id").With(sandbox.WithBind(dir, "/job"), sandbox.WithDir("/job")).With(opts...), dir
	}
	s, dir := run()
	requireHeld(t, "set-id", s)
	requireNoSetID(t, dir)
	s, dir = run(sandbox.WithUser(0, 0))
	requireHeld(t, "set-id", s)
	requireNoSetID(t, dir)

	s, dir = run(sandbox.WithSetID())
	for name, o := range tried(t, "set-id", runs.Output(t, s)) {
		if name != "end" && !strings.HasPrefix(name, "of the 32-bit convention") {
			require.True(t, o.through || strings.Contains(o.by, unix.ENOSYS.Error()), "%s: %s", name, o.by) // an older kernel
		}
	}
	require.NotEmpty(t, setIDFiles(t, dir))
}

// So it would have if gVisor's kernel made it, which has the host set the modes of files in binds.
func TestAttackGuestSetID(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "runsc")
	cell, err := sandbox.NewCell(sandbox.CellRuntime("runsc"))
	require.NoError(t, err)
	defer func() { require.NoError(t, cell.Close()) }()
	run := func(opts ...sandbox.Option) (*sandbox.Sandbox, string) {
		dir := testkit.OpenDir(t)
		require.NoError(t, os.Chmod(dir, 0o777)) // owners are the host's
		return attacker("set-id").With(sandbox.WithCell(cell), sandbox.WithBind(dir, "/job"), sandbox.WithDir("/job")).With(opts...), dir
	}
	s, dir := run()
	requireHeld(t, "set-id", s)
	requireNoSetID(t, dir)
	s, dir = run(sandbox.WithSetID())
	result := tried(t, "set-id", runs.Output(t, s))
	require.True(t, result["chmod changed by ptrace 4000"].through, result["chmod changed by ptrace 4000"].by)
	require.NotEmpty(t, setIDFiles(t, dir))
}

func requireNoSetID(t *testing.T, dir string) {
	t.Helper()
	require.Empty(t, setIDFiles(t, dir))
}

func setIDFiles(t *testing.T, dir string) (list []string) {
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && !d.IsDir() && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			list = append(list, path)
		}
		return err
	}))
	return list
}

func init() {
	var list []attack
	for _, bit := range []uint32{unix.S_ISUID, unix.S_ISGID} {
		for _, way := range setIDWays {
			list = append(list, attack{name: fmt.Sprintf("%s %o", way.name, bit), try: func([]string) error {
				name := fmt.Sprintf("%s-%o", strings.ReplaceAll(way.name, " ", "-"), bit)
				if err := way.try(name, bit|0o755); err != nil {
					return err
				}
				var st unix.Stat_t
				if err := unix.Stat(name, &st); err != nil {
					return err
				}
				if st.Mode&bit == 0 {
					return fmt.Errorf("the mode is %o", st.Mode)
				}
				return nil
			}})
		}
	}
	addAttacks("set-id", list)
}

// setIDWays are ways to give a file a mode.
var setIDWays = []struct {
	name string
	try  func(name string, mode uint32) error
}{
	{"chmod", existing(unix.Chmod)},
	{"fchmod", existing(func(name string, mode uint32) error {
		return withFile(name, func(fd int) error { return unix.Fchmod(fd, mode) })
	})},
	{"fchmodat", existing(func(name string, mode uint32) error { return unix.Fchmodat(unix.AT_FDCWD, name, mode, 0) })},
	{"fchmodat2", existing(func(name string, mode uint32) error {
		return rawCall(unix.SYS_FCHMODAT2, uintptr(atCWD), pathOf(name), uintptr(mode), 0)
	})},
	{"chmod with high bits", existing(func(name string, mode uint32) error {
		return rawCall(unix.SYS_FCHMODAT, uintptr(atCWD), pathOf(name), 0xffffffff<<32|uintptr(mode))
	})},
	{"open", func(name string, mode uint32) error { return opened(unix.Open(name, unix.O_CREAT|unix.O_WRONLY, mode)) }},
	{"open with high bits", func(name string, mode uint32) error {
		return rawCall(unix.SYS_OPENAT, uintptr(atCWD), pathOf(name), 0xff<<32|unix.O_CREAT|unix.O_WRONLY, 0xff<<32|uintptr(mode))
	}},
	{"open of an unnamed file", func(name string, mode uint32) error {
		fd, err := unix.Open(".", unix.O_TMPFILE|unix.O_WRONLY, mode)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	}},
	{"openat2", func(name string, mode uint32) error {
		return opened(unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: uint64(mode)}))
	}},
	{"mknod", func(name string, mode uint32) error { return unix.Mknod(name, unix.S_IFREG|mode, 0) }},
	{"of the 32-bit convention chmod", existing(func(name string, mode uint32) error {
		if runtime.GOARCH != "amd64" {
			return unix.ENOSYS
		}
		return rawCall(x32Bit|90, pathOf(name), uintptr(mode))
	})},
	{"chmod changed by ptrace", existing(changedCall)},
}

// changedCall has a child make a call that no filter refuses, and sets the mode where the child
// stops at its entry.
func changedCall(name string, mode uint32) error {
	const harmless = 0o701
	cmd := exec.Command("chmod", fmt.Sprintf("%o", harmless), name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	third := map[string]int{"amd64": 12, "arm64": 2}[runtime.GOARCH] // the argument's place in struct user_regs_struct
	for {
		var status unix.WaitStatus
		switch _, err := unix.Wait4(pid, &status, 0, nil); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case status.Exited() && status.ExitStatus() == 0:
			return nil
		case !status.Stopped():
			return fmt.Errorf("chmod: wait status %#x", status)
		}
		var regs [64]uint64
		const general = 1 // NT_PRSTATUS: linux/elf.h
		iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&regs))}
		iov.SetLen(len(regs) * 8)
		_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(pid), general, uintptr(unsafe.Pointer(&iov)), 0, 0)
		if errno == 0 && regs[third] == harmless {
			regs[third] = uint64(mode)
			_, _, errno = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(pid), general, uintptr(unsafe.Pointer(&iov)), 0, 0)
		}
		if errno != 0 {
			return errno
		}
		if err := unix.PtraceSyscall(pid, 0); err != nil {
			return err
		}
	}
}

const x32Bit = 0x40000000

// atCWD is a variable because the constant does not fit a uintptr.
var atCWD = unix.AT_FDCWD

func existing(try func(name string, mode uint32) error) func(string, uint32) error {
	return func(name string, mode uint32) error {
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o600); err != nil {
			panic(err)
		}
		return try(name, mode)
	}
}

func withFile(name string, f func(fd int) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return f(int(file.Fd()))
}

func opened(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func pathOf(name string) uintptr {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		panic(err)
	}
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

// kept are strings that system calls read, by address.
var kept []*byte
