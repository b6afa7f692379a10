//go:build linux

package attack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Nothing of the host, its processes or other runs can be found in a run.
func TestAttackSecrets(t *testing.T) {
	secret := "secret-" + testkit.ALongTime()
	t.Setenv("SANDBOX_TEST_SECRET", secret)
	file := filepath.Join(testkit.OpenDir(t), "secret")
	testkit.WriteFile(t, file, secret, 0o644)
	shared := "/dev/shm/" + secret
	testkit.WriteFile(t, shared, secret, 0o644)
	t.Cleanup(func() { require.NoError(t, os.Remove(shared)) })
	segment, err := unix.SysvShmGet(segmentKey, 4096, unix.IPC_CREAT|0o666)
	require.NoError(t, err)
	t.Cleanup(func() { _, err := unix.SysvShmCtl(segment, unix.IPC_RMID, nil); require.NoError(t, err) })
	queue, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, pathOf(secret), unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o666, 0, 0, 0)
	require.Zero(t, errno)
	t.Cleanup(func() { unix.Close(int(queue)); require.NoError(t, rawCall(unix.SYS_MQ_UNLINK, pathOf(secret))) })
	leaveOpen(t, file)
	name, err := os.Hostname()
	require.NoError(t, err)
	neighbour := runs.Start(t, runs.Shell("echo "+secret+" | tee /tmp/"+secret+" ~/"+secret+" >/dev/shm/"+secret+"; exec sleep 1000", sandbox.WithEnv("NEIGHBOUR="+secret)))
	args := []string{secret, file, strconv.Itoa(neighbour.PID()), name}

	s := attacker("secrets", args...)
	requireHeld(t, "secrets", s)
	t.Run("as uid 0", func(t *testing.T) {
		requireHeld(t, "secrets", s.With(sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE")))
	})
	t.Run("with a writable root", func(t *testing.T) {
		testkit.Need(t, "overlayfs for runs")
		requireHeld(t, "secrets", s.With(sandbox.WithWritableRoot(16*sandbox.MiB)))
	})
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		t.Run("without a user namespace", func(t *testing.T) { requireHeld(t, "secrets", runs.HostUser(s)) })
	}
	leaveOpen(t, file) // again: when a cell boots, libcontainer makes open files close-on-exec
	requireControl(t, "secrets", args...)
}

// leaveOpen opens a file and an event descriptor that are not close-on-exec, as careless programs
// do.
func leaveOpen(t *testing.T, name string) {
	file, err := unix.Open(name, unix.O_RDONLY, 0)
	require.NoError(t, err)
	event, err := unix.Eventfd(0, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(file); unix.Close(event) })
}

const segmentKey = 0x5a4d0b0c

func init() {
	list := []attack{
		{"the host's environment", func(args []string) error { return inFiles(args[0], "/proc/*/environ") }, true},
		{"the host's file", func(args []string) error { return contains(args[1], args[0]) }, true},
		{"the host's file through PID 1", func(args []string) error { return contains("/proc/1/root"+args[1], args[0]) }, false},
		{"the host's file through a descriptor", func(args []string) error { return inFiles(args[0], "/proc/*/fd/*/"+strings.TrimPrefix(args[1], "/")) }, false},
		{"the host's file from the working directory up", func(args []string) error {
			return contains("../../../../../../../.."+args[1], args[0])
		}, true},
		{"the host's shared memory file", func(args []string) error { return contains("/dev/shm/"+args[0], args[0]) }, true},
		{"the host's shared memory", func([]string) error {
			_, err := unix.SysvShmGet(segmentKey, 4096, 0)
			return err
		}, true},
		{"the neighbour's files", func(args []string) error {
			return inFiles(args[0], "/tmp/"+args[0], "/home/sandbox/"+args[0], "/proc/*/root/tmp/"+args[0])
		}, true},
		{"the neighbour's process", func(args []string) error { return unix.Kill(int(number(args[2])), 0) }, true},
		{"another process", func([]string) error { return otherProcess() }, true},
		{"/etc/shadow", func([]string) error { return contains("/etc/shadow", ":") }, true},
		{"/root", func([]string) error { return readDir("/root") }, true},
		{"/home", func([]string) error { return others("/home", "sandbox") }, false},
		{"/var", func([]string) error { return others("/var", "run", "tmp", "lib", "cache") }, true},
		{"/var/run", func([]string) error { return readDir("/var/run") }, true},
		{"/run", func([]string) error { return readDir("/run") }, true},
		{"/etc/ssh", func([]string) error { return readDir("/etc/ssh") }, false},
		{"/boot", func([]string) error { return readDir("/boot") }, false},
		{"the machine's id", func([]string) error {
			return inFiles("", "/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/*", "/proc/device-tree/*")
		}, false},
		{"the host's name", func(args []string) error { return hostNamed(args[3]) }, true},
		{"the kernel log", func([]string) error { return refusedBy(rawCall(unix.SYS_SYSLOG, 3, 0, 0), unix.EPERM) }, true},
		{"the kernel log as a device", func([]string) error { return opened(unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)) }, false},
		{"the host's program", func([]string) error { return opened(unix.Open("/proc/1/exe", unix.O_RDONLY, 0)) }, false},
		{"the host's program for writing", func([]string) error { return opened(unix.Open("/proc/self/exe", unix.O_WRONLY, 0)) }, false},
		{"a descriptor that was left open", func([]string) error { return strangeDescriptors() }, true},
		{"the host's network", func([]string) error { return otherInterfaces() }, false},
		{"the host's message queue", func(args []string) error { return rawCall(unix.SYS_MQ_OPEN, pathOf(args[0]), 0, 0, 0) }, true},
	}
	addAttacks("secrets", list)
}

func contains(file, what string) error {
	b, err := os.ReadFile(file)
	if err == nil && !bytes.Contains(b, []byte(what)) {
		return errNothing
	}
	return err
}

// inFiles looks for a text in the files that match the patterns, except this process's own.
func inFiles(what string, patterns ...string) error {
	result := errNothing
	for _, p := range patterns {
		files, _ := filepath.Glob(p)
		for _, f := range files {
			if err := contains(f, what); err == nil {
				return nil
			} else if !errors.Is(err, errNothing) {
				result = err
			}
		}
	}
	return result
}

// otherProcess finds a process that is neither PID 1 nor this one.
func otherProcess() error {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid := filepath.Base(d); pid != "1" && pid != strconv.Itoa(os.Getpid()) {
			return nil
		}
	}
	return errNothing
}

// others finds an entry of a directory with another name.
func others(dir string, but ...string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if !slices.Contains(but, e.Name()) {
			return nil
		}
	}
	return errors.Join(err, errNothing)
}

func hostNamed(name string) error {
	if own, err := os.Hostname(); err != nil || own == name {
		return err
	}
	return inFiles(name, "/etc/hostname", "/etc/hosts", "/proc/sys/kernel/hostname")
}

// strangeDescriptors finds a descriptor that this process, a Go program with three standard
// streams, has not opened itself.
func strangeDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	events := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		switch {
		case err != nil || len(e.Name()) == 1 && e.Name() < "3":
		case to == "anon_inode:[eventfd]":
			if events++; events > 1 { // one is the runtime's
				return nil
			}
		case to != "anon_inode:[eventpoll]" && !strings.HasPrefix(to, "/proc/"):
			return nil
		}
	}
	return errors.Join(err, errNothing)
}

func otherInterfaces() error {
	b, err := os.ReadFile("/proc/self/net/dev")
	lines := slices.Collect(strings.Lines(string(b)))
	for _, l := range lines[min(2, len(lines)):] {
		if !strings.HasPrefix(strings.TrimSpace(l), "lo:") {
			return nil
		}
	}
	return errors.Join(err, errNothing)
}

// A crash starts no program of the host, which would process memory that the attacker controls:
// core(5).
func TestAttackCoreDump(t *testing.T) {
	testkit.Need(t, "a guest's sysctls")
	dir := testkit.OpenDir(t)
	script := filepath.Join(dir, "handler")
	testkit.WriteFile(t, script, "#!/bin/sh\n: >"+dir+"/started\n", 0o755)
	testkit.SetSysctl(t, "kernel/core_pattern", "|"+script)
	started := func() bool { _, err := os.Stat(dir + "/started"); return err == nil }
	crash := runs.Shell("kill -SEGV $$")
	_, err := crash.Run(testkit.Deadline(t))
	require.Equal(t, unix.SIGSEGV, runs.ExitError(t, err).Signal)
	_, err = crash.With(sandbox.WithRlimit("core", 0, 0)).Run(testkit.Deadline(t))
	require.Equal(t, unix.SIGSEGV, runs.ExitError(t, err).Signal)
	testkit.Eventually(t, "the control, a limit of 0, starts it", started)
	require.NoError(t, os.Remove(dir+"/started"))
	_, err = crash.Run(testkit.Deadline(t))
	require.Equal(t, unix.SIGSEGV, runs.ExitError(t, err).Signal)
	require.Never(t, started, 500*1e6, 50*1e6)
}
