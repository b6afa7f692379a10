//go:build linux

package hint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/program"
)

// TestNoUserNamespacesDetected has the ways in which distributions switch user namespaces off.
func TestNoUserNamespacesDetected(t *testing.T) {
	const most, apparmor, clone = "user/max_user_namespaces", "kernel/apparmor_restrict_unprivileged_userns", "kernel/unprivileged_userns_clone"
	tests := []struct {
		sysctls      map[string]string
		user, asRoot string // what the remedies begin with
	}{
		{nil, "", ""},
		{map[string]string{most: "63000", apparmor: "0", clone: "1"}, "", ""},
		{map[string]string{most: "0"}, "sysctl user.max_user_namespaces=65536, or run this program as root and use WithoutUserNamespace",
			"sysctl user.max_user_namespaces=65536, or WithoutUserNamespace"},
		{map[string]string{most: "63000", apparmor: "1"}, "sysctl kernel.apparmor_restrict_unprivileged_userns=0", ""},
		{map[string]string{most: "63000", clone: "0"}, "sysctl kernel.unprivileged_userns_clone=1", ""},
	}
	for _, test := range tests {
		dir := t.TempDir()
		for name, value := range test.sysctls {
			path := filepath.Join(dir, name)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, []byte(value+"\n"), 0o644))
		}
		for root, want := range map[bool]string{false: test.user, true: test.asRoot} {
			remedy, sure, why := noUserNamespaces(dir, root)
			require.Equal(t, want == "", why == nil, test)
			require.Equal(t, want, remedy[:min(len(want), len(remedy))], test)
			require.Equal(t, want == "", remedy == "")
			require.Equal(t, test.sysctls[apparmor] != "1" || root, sure, "profiles make exceptions")
		}
	}
}

func TestObstacleHint(t *testing.T) {
	t.Parallel()
	require.Equal(t, "this container has a /proc of which parts are covered: docker run --security-opt systempaths=unconfined, "+
		"or in a Kubernetes securityContext procMount: Unmasked (docs/CONTAINERS.md)", obstacleHint(false, false, true))
	require.Contains(t, obstacleHint(true, true, true), "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined, ")
	require.Contains(t, obstacleHint(false, true, false), "an AppArmor profile: docker run --security-opt apparmor=unconfined, or in a Kubernetes securityContext appArmorProfile: {type: Unconfined} ")
	require.Contains(t, obstacleHint(false, false, false), "--privileged")
}

func TestHints(t *testing.T) {
	for _, test := range []struct {
		purpose program.Purpose
		call    uintptr
		errno   unix.Errno
		want    string
	}{
		{program.General, unix.SYS_OPENAT2, unix.EACCES, "must be open to others"},
		{program.Place, unix.SYS_OPENAT2, unix.EACCES, "must be open to others"},
		{program.Place, unix.SYS_OPENAT2, unix.ENOENT, "in a directory of the host, or in a bind; elsewhere, as in /opt, it is made"},
		{program.General, unix.SYS_OPENAT2, unix.ENOENT, ""},
		{program.Place, unix.SYS_MOVE_MOUNT, unix.ENOTDIR, "must both be directories, or neither"},
		{program.Place, unix.SYS_MOVE_MOUNT, unix.EINVAL, "must both be directories, or neither"},
		{program.Place, unix.SYS_MOVE_MOUNT, unix.EPERM, ""},
		{program.General, unix.SYS_MOVE_MOUNT, unix.EINVAL, ""},
		{program.OwnPlace, unix.SYS_MOVE_MOUNT, unix.ENOTDIR, "proc and dev must be directories"},
		{program.OwnPlace, unix.SYS_OPENAT2, unix.ELOOP, "must not be symbolic links"},
		{program.Place, unix.SYS_OPENAT, unix.EACCES, "the run's user may write to"},
		{program.General, unix.SYS_OPENAT, unix.EACCES, ""},
		{program.Directory, unix.SYS_CHDIR, unix.ENOENT, "must exist in the run's root"},
		{program.Directory, unix.SYS_CHDIR, unix.EACCES, ""},
		{program.Groups, unix.SYS_SETGROUPS, unix.EINVAL, "no other groups"},
		{program.Clocks, unix.SYS_WRITE, unix.ERANGE, "the start of the machine"},
		{program.Clocks, unix.SYS_UNSHARE, unix.EINVAL, "CONFIG_TIME_NS"},
		{program.Clocks, unix.SYS_UNSHARE, unix.ENOSPC, "user.max_*_namespaces"},
		{program.Exec, unix.SYS_EXECVE, unix.E2BIG, "too large together"},
		{program.Exec, unix.SYS_EXECVE, unix.EPERM, "must allow execve"},
		{program.Exec, unix.SYS_EXECVE, unix.ENOENT, "must be in the run's root"},
		{program.Exec, unix.SYS_EXECVE, unix.EACCES, "may execute"},
		{program.Exec, unix.SYS_EXECVE, unix.ENOEXEC, "#!/bin/sh, and a program must be one for linux/" + runtime.GOARCH},
		{program.Exec, unix.SYS_EXECVE, unix.EIO, ""},
		{program.General, unix.SYS_PRLIMIT64, unix.EPERM, "a hard limit can't be raised"},
		{program.General, unix.SYS_CLONE3, unix.EAGAIN, "too many processes"},
	} {
		got := Call(&cell.CallError{Call: program.Call{Number: test.call, Purpose: test.purpose}, Errno: test.errno})
		require.Contains(t, got, test.want, "%+v", test)
		require.Equal(t, test.want == "", got == "", "%+v", test)
	}
}

func TestPrivateHints(t *testing.T) {
	for errno, want := range map[unix.Errno]string{unix.EOPNOTSUPP: "modprobe veth", unix.EPERM: "CAP_NET_ADMIN", unix.EMFILE: "ulimit -n", unix.EIO: ""} {
		got := Private(fmt.Errorf("the way to the gateway: %w", errno))
		require.Contains(t, got, want)
		require.Equal(t, want == "", got == "")
	}
}

func TestBootHints(t *testing.T) {
	for why, want := range map[cell.Why]string{cell.ProgramUnreadable: "must be readable", cell.ChildTaken: "Wait4(-1)", cell.Other: ""} {
		err := fmt.Errorf("booting: %w", &cell.BootError{Why: why, Err: errors.New("x")})
		require.Contains(t, Boot(err, false), want)
		require.Equal(t, want == "", Boot(err, false) == "")
	}
	denied := &cell.BootError{Why: cell.CapabilitiesLacking, Denied: true, Err: unix.EPERM}
	require.Contains(t, Boot(denied, true), "--cap-add NET_ADMIN")
	require.Contains(t, Boot(&cell.BootError{Denied: true, Err: unix.EPERM}, true), "container")
	require.Contains(t, Boot(&cell.BootError{Err: cell.ErrNested}, true), "the process that started this run")
}
