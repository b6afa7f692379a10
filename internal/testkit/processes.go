//go:build linux

package testkit

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// ALongTime returns an argument for sleep that no other process on this machine has.
func ALongTime() string { return fmt.Sprintf("1%08d.%09d", rand.IntN(1e8), rand.IntN(1e9)) }

// Running returns the pids of this machine's processes with the given last argument.
func Running(lastArg string) (pids []int) {
	for _, pid := range Processes() {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.HasSuffix(string(b), "\x00"+lastArg+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// RequireGone fails if there is a process with the given last argument.
func RequireGone(t testing.TB, lastArg string) {
	t.Helper()
	require.Empty(t, Running(lastArg), "outlived its run")
}

// Processes returns the pids of all processes of this machine.
func Processes() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		pids = append(pids, pid)
	}
	return pids
}

// ChildPIDs returns the pids of this process's children, including zombies.
func ChildPIDs() []int { return ChildrenOf(os.Getpid()) }

// Parent returns the parent of a process.
func Parent(t testing.TB, pid int) (parent int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(b), "\nPPid:\t")
	_, err = fmt.Sscan(rest, &parent)
	require.NoError(t, err)
	return parent
}

// ChildrenOf returns the pids of a process's children, including zombies.
func ChildrenOf(pid int) (pids []int) {
	for _, child := range children(pid) {
		pid, _ := strconv.Atoi(strings.Fields(child)[0])
		pids = append(pids, pid)
	}
	return pids
}

// children describes a process's children: proc_pid_stat(5).
func children(parent int) (list []string) {
	for _, pid := range Processes() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// pid (comm) state ppid ...: comm may contain anything.
		end := strings.LastIndexByte(string(b), ')')
		if end < 0 {
			continue
		}
		if fields := strings.Fields(string(b[end+1:])); fields[1] == strconv.Itoa(parent) {
			list = append(list, string(b[:end+1])+" in state "+fields[0])
		}
	}
	return list
}

// SetSysctl sets a sysctl of a guest until the test ends.
func SetSysctl(t *testing.T, name, value string) {
	t.Helper()
	file := "/proc/sys/" + name
	was, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(value), 0))
	t.Cleanup(func() { require.NoError(t, os.WriteFile(file, was, 0)) })
}
