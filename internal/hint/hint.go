//go:build linux

// Package hint says what to do about a run that could not start, or a cell that could not be
// booted.
package hint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/program"
)

// Call returns what to do about a call that failed, or "" if that is not known.
func Call(e *cell.CallError) string {
	if text := ofPurpose(e); text != "" {
		return text
	}
	return ofCall(e)
}

// Exec returns what to do about a command that could not be executed, or "" if that is not known
// by the error alone.
func Exec(errno unix.Errno) string {
	switch errno {
	case unix.ENOENT:
		return "the command and its interpreter must be in the run's root: WithReadOnlyBind shows files of the host there"
	case unix.EACCES:
		return "the command must be a program that the run's user may execute"
	case unix.ENOEXEC:
		return "a script must begin with its interpreter, as in #!/bin/sh, and a program must be one for linux/" + runtime.GOARCH
	}
	return ""
}

// ofPurpose looks at what the call was for.
func ofPurpose(e *cell.CallError) string {
	mismatched := e.Number == unix.SYS_MOVE_MOUNT && (e.Errno == unix.ENOTDIR || e.Errno == unix.EINVAL)
	switch e.Purpose {
	case program.Clocks:
		switch e.Errno {
		case unix.ERANGE:
			return "the clocks can't go back further than to the start of the machine, which /proc/uptime tells"
		case unix.EINVAL, unix.ENOENT:
			return "a kernel with time namespaces: CONFIG_TIME_NS"
		}
	case program.Groups:
		return "a run of this user has no other groups: run this program as root, or give its user 4194304 ids in /etc/subuid and /etc/subgid"
	case program.Directory:
		if e.Errno == unix.ENOENT {
			return "the directory must exist in the run's root"
		}
	case program.Exec:
		return Exec(e.Errno)
	case program.OwnPlace:
		switch {
		case e.Errno == unix.ELOOP:
			return "WithRootfs: make it a directory: proc and dev must not be symbolic links"
		case mismatched:
			return "WithRootfs: proc and dev must be directories"
		}
	case program.Place:
		switch {
		case e.Number == unix.SYS_OPENAT && e.Errno == unix.EACCES:
			return "its place must be in a directory that the run's user may write to, such as a tmpfs"
		case e.Number == unix.SYS_OPENAT2 && e.Errno == unix.ENOENT:
			return "the mount point must exist where its place can't be written: in a directory of the host, or in a bind; elsewhere, as in /opt, it is made"
		case mismatched:
			return "the source and the mount point must both be directories, or neither"
		}
	}
	return ""
}

// failed is a system call and how it failed.
type failed struct {
	number uintptr
	errno  unix.Errno
}

// ofCall looks at the call alone, whatever it was for.
func ofCall(e *cell.CallError) string {
	switch (failed{e.Number, e.Errno}) {
	case failed{unix.SYS_EXECVE, unix.E2BIG}:
		return "WithCommand and WithEnv are too large together, or one string of them is larger than 128 KiB: pass what is large in a file, with WithFile or WithReadOnlyBind"
	case failed{unix.SYS_EXECVE, unix.EPERM}:
		return "a profile of WithSeccomp must allow execve"
	case failed{unix.SYS_PRLIMIT64, unix.EPERM}:
		return "WithRlimit: a hard limit can't be raised above this process's own"
	case failed{unix.SYS_FCNTL, unix.EINVAL}:
		return "raise this process's hard limit on open files (RLIMIT_NOFILE) to 256 or more"
	case failed{unix.SYS_DUP3, unix.EBADF}:
		return "before Linux 5.12: raise this process's hard limit on open files (RLIMIT_NOFILE) to 1024 or more"
	case failed{unix.SYS_SECCOMP, unix.EBUSY}:
		return "this program runs under a seccomp filter with a listener, and the kernel allows one: leave WithRefusals out"
	case failed{unix.SYS_UNSHARE, unix.ENOSPC}:
		return "raise the sysctls user.max_*_namespaces"
	case failed{unix.SYS_CLONE3, unix.ENOSPC}:
		if remedy, _, why := NoUserNamespaces(); why != nil {
			return fmt.Sprintf("%v: %s", why, remedy)
		}
		return "raise the sysctls user.max_user_namespaces and user.max_pid_namespaces"
	case failed{unix.SYS_CLONE3, unix.EAGAIN}:
		return "this user or its cgroup has too many processes"
	case failed{unix.SYS_FSCONFIG, unix.EINVAL}:
		if os.Geteuid() != 0 {
			return "as an ordinary user, WithWritableRoot takes no directories with other file systems mounted below them (fs/namespace.c, clone_private_mount)"
		}
	case failed{unix.SYS_OPENAT2, unix.EACCES}:
		return "the directory and those above it must be open to others: to the host's files a run is a stranger"
	}
	return ""
}

// NoUserNamespaces returns what keeps this user from making user namespaces, and what to do about
// it. why is nil if nothing known does. If sure is false, this program may be an exception.
func NoUserNamespaces() (remedy string, sure bool, why error) {
	return noUserNamespaces("/proc/sys", os.Geteuid() == 0)
}

// noUserNamespaces does what NoUserNamespaces does, for root or another user, with sysctls in place
// of /proc/sys.
func noUserNamespaces(sysctls string, root bool) (remedy string, sure bool, why error) {
	value := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(sysctls, name))
		return strings.TrimSpace(string(b))
	}
	sure = true
	switch {
	case value("user/max_user_namespaces") == "0":
		why = errors.New("user namespaces are switched off: the sysctl user.max_user_namespaces is 0")
		remedy = "sysctl user.max_user_namespaces=65536"
		if root {
			remedy += ", or WithoutUserNamespace, which says what wall is missing then"
		} else {
			remedy += ", or run this program as root and use WithoutUserNamespace, which says what wall is missing then"
		}
	case root:
	case value("kernel/apparmor_restrict_unprivileged_userns") == "1":
		why = errors.New("AppArmor keeps ordinary users from using user namespaces: the sysctl kernel.apparmor_restrict_unprivileged_userns is 1")
		remedy = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, an AppArmor profile for this program that has userns (docs/REMEDIES.md), or run it as root"
		sure = false
	case value("kernel/unprivileged_userns_clone") == "0":
		why = errors.New("ordinary users can't make user namespaces: the sysctl kernel.unprivileged_userns_clone is 0")
		remedy = "sysctl kernel.unprivileged_userns_clone=1, or run this program as root"
	}
	return remedy, sure, why
}

// obstacle is something that a container engine puts in the way of a cell, and what to tell the
// engine instead.
type obstacle struct {
	name, docker, kubernetes string
}

var (
	seccompFilter   = obstacle{"a seccomp filter", "--security-opt seccomp=unconfined", "seccompProfile: {type: Unconfined}"}
	apparmorProfile = obstacle{"an AppArmor profile", "--security-opt apparmor=unconfined", "appArmorProfile: {type: Unconfined}"}
	maskedProc      = obstacle{"a /proc of which parts are covered", "--security-opt systempaths=unconfined", "procMount: Unmasked"}
)

// containerHint names the flags that this process's container lacks, of those that matter from the
// failed step of the boot on: namespaces come first, then mounts, then /proc.
func containerHint(inProc bool) string {
	return obstacleHint(
		!inProc && ownStatus("Seccomp") == "2",
		!inProc && confined(),
		covered("/proc/self/mountinfo"))
}

func obstacleHint(seccomp, apparmor, masked bool) string {
	var names, docker, kubernetes []string
	for _, o := range []struct {
		there bool
		obstacle
	}{{seccomp, seccompFilter}, {apparmor, apparmorProfile}, {masked, maskedProc}} {
		if o.there {
			names = append(names, o.name)
			docker = append(docker, o.docker)
			kubernetes = append(kubernetes, o.kubernetes)
		}
	}
	if len(names) == 0 {
		return "inside a container, allow user namespaces and mounts, or run with --privileged"
	}
	return fmt.Sprintf("this container has %s: docker run %s, or in a Kubernetes securityContext %s (docs/CONTAINERS.md)",
		strings.Join(names, ", "), strings.Join(docker, " "), strings.Join(kubernetes, ", "))
}

// ownStatus returns the value of a line of /proc/self/status.
func ownStatus(name string) string {
	b, _ := os.ReadFile("/proc/self/status")
	return StatusField(string(b), name)
}

// StatusField returns the value of a line of a text like /proc/self/status.
func StatusField(status, name string) string {
	_, rest, _ := strings.Cut(status, "\n"+name+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// confined reports whether an AppArmor profile holds for this process: apparmor(7). Without
// AppArmor, the files are not there, or are another module's.
func confined() bool {
	if _, err := os.Stat("/sys/module/apparmor"); err != nil {
		return false
	}
	for _, file := range []string{"/proc/self/attr/apparmor/current", "/proc/self/attr/current"} {
		if b, err := os.ReadFile(file); err == nil {
			profile := strings.TrimRight(string(b), "\x00\n")
			return profile != "" && profile != "unconfined"
		}
	}
	return false
}

// covered reports whether something is mounted below /proc, except where the kernel has a mount
// point for it.
func covered(mountinfo string) bool {
	b, _ := os.ReadFile(mountinfo)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], "/proc/") && f[4] != "/proc/sys/fs/binfmt_misc" {
			return true
		}
	}
	return false
}

// Boot returns what to do about a cell that could not be booted, or "" if that is not known.
func Boot(err error, hostIDs bool) string {
	if remedy, _, why := NoUserNamespaces(); why != nil && !hostIDs {
		return fmt.Sprintf("%v: %s", why, remedy)
	}
	var boot *cell.BootError
	var missing *cell.MissingError
	switch {
	case !errors.As(err, &boot):
	case boot.Why == cell.ChildTaken:
		return "something in this process waits for all children, Wait4(-1), and must wait for its own only"
	case boot.Why == cell.ProgramUnreadable:
		return "this program's file must be readable for the user that it runs as: chmod a+r"
	case boot.Why == cell.IDsUnmapped && os.Geteuid() == 0:
		return "root needs CAP_SETFCAP to map its own id into a user namespace: docker run --cap-add SETFCAP, " +
			"or run as another user (docker run --user 1000; docs/CONTAINERS.md)"
	case boot.Why == cell.CapabilitiesLacking && hostIDs:
		return "WithoutUserNamespace takes capabilities that this container's root lacks: docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN"
	case errors.As(err, &missing):
		return missing.Remedy()
	case errors.Is(err, cell.ErrRuntimeNeedsRoot):
		return "run this program as root, or leave CellRuntime out"
	case errors.Is(err, cell.ErrNoLibcontainer):
		return "build it with CGO_ENABLED=1 and a C compiler, or leave CellRuntime out"
	case errors.Is(err, cell.ErrNested):
		return "start it from the process that started this run"
	case boot.Denied:
		return containerHint(boot.Why == cell.ProcUnmounted)
	}
	return ""
}

// Private returns what to do about a private network that can't be made.
func Private(err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return "a kernel with veth: modprobe veth, or CONFIG_VETH; for Reaches also CONFIG_IP_MULTIPLE_TABLES"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "this process must be the user that it was when the cell was booted; with WithoutUserNamespace it needs CAP_NET_ADMIN and CAP_NET_RAW"
	}
	return Own(err)
}

// Own returns what to do about what this process lacks itself, or "" if that is not it.
func Own(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE):
		return "raise this process's limit of open files (ulimit -n, RLIMIT_NOFILE), or have fewer runs at a time"
	case errors.Is(err, unix.ENFILE):
		return "raise the machine's limit of open files: sysctl fs.file-max"
	}
	return ""
}
