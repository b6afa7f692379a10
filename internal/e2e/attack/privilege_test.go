//go:build linux

package attack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// Whatever user a run has, it gains no privilege, makes no namespace and no mount, and has no
// access to its PID 1.
func TestAttackPrivilege(t *testing.T) {
	t.Parallel()
	s := attacker("privilege", "1")
	requireHeld(t, "privilege", s, samePID1If(runs.OneID(t))...)
	t.Run("as uid 0", func(t *testing.T) { requireHeld(t, "privilege", s.With(sandbox.WithUser(0, 0)), samePID1) })
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		t.Run("without a user namespace", func(t *testing.T) { requireHeld(t, "privilege", runs.HostUser(s)) })
	}
	target := exec.Command("sleep", "1000")
	require.NoError(t, target.Start())
	defer func() { _ = target.Process.Kill(); _ = target.Wait() }()
	requireControl(t, "privilege", strconv.Itoa(target.Process.Pid))
}

// samePID1 is what a run whose user has the id of PID 1 may do to it. PID 1 has nothing left to do
// for which limits matter.
const samePID1 = "limits of PID 1"

func samePID1If(same bool) []string {
	if same {
		return []string{samePID1}
	}
	return nil
}

// A capability to trace others does not give access to PID 1 either.
func TestAttackPrivilegeWithCapabilities(t *testing.T) {
	t.Parallel()
	s := attacker("PID 1", "1")
	kept := sandbox.WithCapabilities("CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_CHECKPOINT_RESTORE")
	requireHeld(t, "PID 1", s.With(kept), samePID1If(runs.OneID(t))...)
	t.Run("as uid 0", func(t *testing.T) { requireHeld(t, "PID 1", s.With(kept, sandbox.WithUser(0, 0)), samePID1) })
}

// A set-uid program gives a run nothing. On the host it would.
func TestAttackSetUIDProgram(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "a whole machine's root")
	dir := testkit.OpenDir(t)
	id, err := exec.LookPath("id")
	require.NoError(t, err)
	b, err := os.ReadFile(id)
	require.NoError(t, err)
	program := filepath.Join(dir, "id")
	testkit.WriteFile(t, program, string(b), 0o755)
	require.NoError(t, os.Chmod(program, 0o755|os.ModeSetuid|os.ModeSetgid))
	onHost := exec.Command(program, "-u")
	onHost.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := onHost.Output()
	require.NoError(t, err)
	require.Equal(t, "0\n", string(out), "the control: the directory may be mounted nosuid here")
	require.Equal(t, "1000", runs.Output(t, sandbox.New(sandbox.WithReadOnlyBind(dir, "/suid"), sandbox.WithCommand("/suid/id", "-u"))))
	require.Equal(t, "1000", runs.Output(t, runs.Shell("for p in su mount passwd newgrp; do /bin/$p --help >/dev/null 2>&1; done; exec /suid/id -u", sandbox.WithReadOnlyBind(dir, "/suid"))))
}

func init() {
	list := []attack{
		{"a capability in any set", func([]string) error { return anyBits("Cap") }, true},
		{"privileges through exec", func([]string) error {
			_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)
			if statusOfSelf("NoNewPrivs") == "0" {
				return nil
			}
			return errors.New("no_new_privs is set")
		}, true},
		{"no filter", func([]string) error {
			if statusOfSelf("Seccomp") == "0" {
				return nil
			}
			return errors.New("seccomp is on")
		}, false},
		{"clone3", func([]string) error { return refusedBy(rawCall(unix.SYS_CLONE3, 0, 0), unix.ENOSYS) }, true},
		{"setns to PID 1", func(args []string) error {
			var errs error
			for _, ns := range []string{"uts", "net", "ipc", "cgroup", "pid", "pid_for_children", "time", "mnt", "user"} {
				err := withFile("/proc/"+args[0]+"/ns/"+ns, func(fd int) error { return unix.Setns(fd, 0) })
				if err == nil {
					return nil
				}
				errs = errors.Join(errs, err)
			}
			return errs
		}, true},
		{"other ids", func([]string) error { return rawCall(unix.SYS_SETRESUID, 4242, 4242, 4242) }, true},
		{"other groups", func([]string) error {
			groups := [1]uint32{4242}
			return rawCall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups)))
		}, true},
		{"a mount", func([]string) error { return mountSomewhere() }, true},
		{"a mount by the new calls", func([]string) error { return opened(unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)) }, true},
		{"a copy of a mount", func([]string) error { return opened(unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE)) }, true},
		{"a writable /usr", func([]string) error { return unix.Mount("", "/usr", "", unix.MS_REMOUNT|unix.MS_BIND, "") }, false},
		{"a writable root by mount_setattr", func([]string) error {
			return unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		}, false},
		{"no masks over /proc", func([]string) error { return unix.Unmount("/proc/kcore", unix.MNT_DETACH) }, false},
		{"no /proc", func([]string) error { return unix.Unmount("/proc", unix.MNT_DETACH) }, false},
		{"pivot_root", func([]string) error { return unix.PivotRoot("/tmp", "/tmp") }, false},
		{"chroot", func([]string) error { return unix.Chroot("/tmp") }, false},
		{"real-time priority", func([]string) error {
			priority := [1]int32{1}
			return rawCall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO, uintptr(unsafe.Pointer(&priority)))
		}, false},
		{"a higher priority", func([]string) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }, false},
		{"real-time I/O", func([]string) error { return rawCall(unix.SYS_IOPRIO_SET, 1, 0, 1<<13) }, false},
		{"a higher limit", func([]string) error {
			var l unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
				return err
			}
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: l.Max + 1, Max: l.Max + 1})
		}, false},
		{"another name for the host", func([]string) error { return unix.Sethostname([]byte("mine")) }, false},
		{"another time", func([]string) error { return unix.Settimeofday(&unix.Timeval{Sec: 1}) }, false},
		{"a socket on the wire", func([]string) error { return opened(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)) }, false},
		{"a raw socket", func([]string) error { return opened(unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)) }, false},
		{"loopback taken down", func([]string) error { return loopbackDown() }, false},
		{"a cgroup file", func([]string) error { return writableCgroup() }, true},
	}
	for name, flag := range map[string]uintptr{"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET,
		"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP} {
		list = append(list, attack{"a " + name + " namespace by clone", func([]string) error { return cloned(flag) }, true})
		list = append(list, attack{"a " + name + " namespace by unshare", func([]string) error {
			return refusedBy(rawCall(unix.SYS_UNSHARE, flag), unix.EPERM)
		}, true})
	}
	list = append(list, attack{"a time namespace by unshare", func([]string) error {
		return refusedBy(rawCall(unix.SYS_UNSHARE, unix.CLONE_NEWTIME), unix.EPERM)
	}, true})
	addAttacks("PID 1", attacksOnProcess)
	addAttacks("privilege", append(list, attacksOnProcess...))
}

// attacksOnProcess are attacks on PID 1 of the run, or on the host on the test's own process. The
// first argument is the pid.
var attacksOnProcess = func() []attack {
	list := []attack{
		{"trace PID 1", func(args []string) error { return rawCall(unix.SYS_PTRACE, unix.PTRACE_SEIZE, number(args[0]), 0, 0) }, true},
		{"a descriptor of PID 1", func(args []string) error {
			pidfd, err := unix.PidfdOpen(int(number(args[0])), 0)
			if err != nil {
				return err
			}
			defer unix.Close(pidfd)
			return opened(unix.PidfdGetfd(pidfd, 0, 0))
		}, true},
		{"the descriptors of PID 1", func(args []string) error { return readable(filepath.Glob("/proc/" + args[0] + "/fd/*")) }, true},
		{"limits of PID 1", func(args []string) error {
			var l unix.Rlimit
			return unix.Prlimit(int(number(args[0])), unix.RLIMIT_NOFILE, nil, &l)
		}, true},
		{"memory of PID 1", func(args []string) error {
			var b [8]byte
			local := []unix.Iovec{{Base: &b[0], Len: 8}}
			_, err := unix.ProcessVMReadv(int(number(args[0])), local, []unix.RemoteIovec{{Base: startOf(args[0]), Len: 8}}, 0)
			return refusedBy(err, unix.EPERM) // a wrong address is a mistake of the attacker
		}, true},
		{"PID 1 stopped or killed", func(args []string) error {
			for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTERM, unix.SIGSEGV, unix.SIGSYS, 34, 64} {
				_ = unix.Kill(1, sig)
				_ = unix.Tgkill(1, 1, sig)
				if pidfd, err := unix.PidfdOpen(1, 0); err == nil {
					_ = unix.PidfdSendSignal(pidfd, sig, nil, 0)
					unix.Close(pidfd)
				}
			}
			b, err := os.ReadFile("/proc/1/stat")
			if err != nil {
				return nil
			}
			if state, _, _ := strings.Cut(string(b[strings.LastIndex(string(b), ")")+2:]), " "); state == "T" || state == "Z" {
				return nil
			}
			return errors.New("it goes on: " + string(b[:20]))
		}, false},
	}
	for _, name := range []string{"environ", "mem", "maps", "auxv", "syscall", "smaps", "pagemap", "io", "map_files", "root", "cwd", "exe"} {
		list = append(list, attack{"/proc/1/" + name, func(args []string) error {
			path := "/proc/" + args[0] + "/" + name
			switch name {
			case "root", "cwd", "exe":
				if to, err := os.Readlink(path); err != nil || to != "" { // 5.10 answers with nothing, and succeeds
					return err
				}
				return errNothing
			case "map_files":
				return readable(filepath.Glob(path + "/*"))
			case "mem", "pagemap":
				return withFile(path, func(int) error { return nil })
			}
			b, err := os.ReadFile(path)
			if err == nil && len(b) == 0 {
				return errNothing
			}
			return err
		}, name != "map_files"})
	}
	return list
}()

// refusedBy turns any error except the one that a filter gives into success: the call was let
// through.
func refusedBy(err, filter error) error {
	if errors.Is(err, filter) {
		return err
	}
	return nil
}

// cloned starts a process in a new namespace.
func cloned(flag uintptr) error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
	return cmd.Run()
}

func mountSomewhere() error {
	dir, err := os.MkdirTemp("", "attack")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	return unix.Unmount(dir, 0)
}

// loopbackDown clears the flags of lo: netdevice(7).
func loopbackDown() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(0)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// writableCgroup opens any cgroup file that can be written to.
func writableCgroup() error {
	files, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	more, _ := filepath.Glob("/sys/fs/cgroup/cgroup.procs")
	for _, f := range append(files, more...) {
		if fd, err := unix.Open(f, unix.O_WRONLY, 0); err == nil {
			unix.Close(fd)
			return nil
		}
	}
	return errNothing
}

// anyBits reports whether a field of this process's status that begins with prefix has a bit set.
func anyBits(prefix string) error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, prefix) && strings.Trim(strings.Fields(line)[1], "0") != "" {
			return nil
		}
	}
	return errNothing
}

func statusOfSelf(field string) string {
	b, _ := os.ReadFile("/proc/thread-self/status")
	_, rest, _ := strings.Cut(string(b), "\n"+field+":\t")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

func number(s string) uintptr {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return uintptr(n)
}

// startOf returns the first mapped address of a process, or of this one.
func startOf(pid string) uintptr {
	b, err := os.ReadFile("/proc/" + pid + "/maps")
	if err != nil {
		b, _ = os.ReadFile("/proc/self/maps")
	}
	var start uintptr
	_, _ = fmt.Sscanf(string(b), "%x-", &start)
	return start
}

// readable follows one of the links.
func readable(links []string, err error) error {
	for _, l := range links {
		if _, err := os.Readlink(l); err == nil {
			return nil
		}
	}
	return errors.Join(err, errNothing)
}
