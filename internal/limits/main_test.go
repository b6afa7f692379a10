//go:build linux

package limits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// testParent holds the cells of this test process, apart from those of other programs.
var testParent = fmt.Sprintf("/limits-test-%d", os.Getpid())

func TestMain(m *testing.M) { testkit.Main(m, requireNothingLeft) }

func init() {
	testkit.AddHelper("fork bomb", forkBomb)
	testkit.AddHelper("discover", discover)
}

// requireNothingLeft reports the cgroups that tests have left.
func requireNothingLeft(context.Context) error {
	all, err := mounts()
	for _, h := range all {
		if dir := path.Join(h.mount, testParent); exists(dir) {
			err = errors.Join(err, fmt.Errorf("left behind: %s", below(dir)))
		}
	}
	return err
}

// forkBomb is the program of TestKillForkBomb.
func forkBomb([]string) error {
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is in its cgroup
	for {
		// Only raw system calls: the children of this fork have no Go runtime.
		_, _, _ = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	}
}

// discover prints what a user without rights finds, and uses it.
func discover(args []string) error {
	for range 2 { // the second time there is nothing to do
		if slices.Contains(args, "subgroup") {
			if err := Subgroup("main"); err != nil {
				fmt.Println(err)
			}
		}
	}
	tree, err := Discover("")
	if err != nil {
		fmt.Println(errors.Is(err, ErrUnavailable), err)
		return nil
	}
	cell, err := tree.NewCell("mine", nil)
	if err != nil {
		return err
	}
	g, err := cell.Create("run", Spec{PIDs: 7})
	if err != nil {
		return err
	}
	limit := readWords(g.v2 + "/pids.max")
	if err := cell.Delete(); err != nil {
		return err
	}
	fmt.Println(tree.parent, "pids.max="+strings.Join(limit, ""))
	return nil
}

// testCell makes a cell that can enforce s, and removes it after the test.
func testCell(t testing.TB, s Spec) *Cell {
	t.Helper()
	testkit.Need(t, "root")
	for _, n := range s.needs() {
		testkit.Need(t, "cgroup "+n.controller)
	}
	tree, err := Discover(testParent)
	require.NoError(t, err)
	require.NoError(t, tree.Missing(s))
	cell, err := tree.NewCell(strings.Map(func(r rune) rune {
		if strings.ContainsRune("/.", r) {
			return '-'
		}
		return r
	}, t.Name()), nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, cell.Delete())
		requireGone(t, cell.Path())
	})
	return cell
}

func requireGone(t testing.TB, p string) {
	t.Helper()
	all, err := mounts()
	require.NoError(t, err)
	for _, h := range all {
		require.NoDirExists(t, path.Join(h.mount, p))
	}
}

// child is a process that waits to be let go.
type child struct {
	*exec.Cmd
	gate io.WriteCloser
}

// start starts a shell with the given script in the group.
func start(t testing.TB, g *Group, script string) *child {
	t.Helper()
	return startCmd(t, g, exec.Command("/bin/sh", "-c", "read go; "+script))
}

func startCmd(t testing.TB, g *Group, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{Cmd: cmd}
	var err error
	c.gate, err = cmd.StdinPipe()
	require.NoError(t, err)
	out, err := os.CreateTemp(t.TempDir(), "") // a file: with a pipe Wait would also wait for orphans
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = g.Kill() // thaws too: on v1 Wait would wait forever for a frozen process
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
	})
	require.NoError(t, g.Add(cmd.Process.Pid))
	_, err = io.WriteString(c.gate, "go\n")
	require.NoError(t, err)
	return c
}

// output waits for the end and returns what was written.
func (c *child) output(t testing.TB) string {
	t.Helper()
	_ = c.Wait()
	data, err := os.ReadFile(c.Stdout.(*os.File).Name())
	require.NoError(t, err)
	return string(data)
}

// signal waits for the end and returns the signal that caused it.
func (c *child) signal() unix.Signal {
	_ = c.Wait()
	return c.ProcessState.Sys().(syscall.WaitStatus).Signal()
}

// population waits until the group has at least that many processes, or none if want is 0.
func population(t testing.TB, g *Group, want int) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, dir := range g.dirs {
			pids, err := members(dir)
			if err != nil || want == 0 && len(pids) > 0 || len(pids) < want {
				return false
			}
		}
		return true
	}, time.Minute, 5*time.Millisecond, "want %d processes", want)
}
