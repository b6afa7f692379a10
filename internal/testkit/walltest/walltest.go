//go:build linux

// Package walltest has the tests of a wall whose container is made by a daemon, which the daemon's
// module runs, and what these share with the tests of other walls.
package walltest

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Helper is a host process with a run in a cell of a runtime: its arguments are the runtime's name,
// and how long the run sleeps. It prints the pid of the run.
const Helper = "walled"

func init() { testkit.AddHelper(Helper, helper) }

func helper(args []string) error {
	c, err := sandbox.NewCell(sandbox.CellRuntime(args[0]))
	if err != nil {
		return err
	}
	p, err := sandbox.New(sandbox.WithCommand("sleep", args[1]), sandbox.WithCell(c)).Start(context.Background())
	if err != nil {
		return err
	}
	fmt.Println(p.PID())
	_, err = p.Wait()
	return err
}

// CellOf returns the name of the cell that a process has or is making, or "".
func CellOf(pid int) string {
	locks, _ := filepath.Glob("/run/sandbox/*/lock")
	for _, lock := range locks {
		if b, err := os.ReadFile(lock); err == nil && string(b) == fmt.Sprintln(pid) {
			return filepath.Base(filepath.Dir(lock))
		}
	}
	return ""
}

// Sweep makes a cell, which removes what others have left.
func Sweep(t testing.TB) {
	t.Helper()
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

// Swept requires that no file in /run and no cgroup has the name of a dead cell once that has been
// swept, which another process on this machine may be at.
func Swept(t testing.TB, id string, msgAndArgs ...any) {
	t.Helper()
	testkit.Eventually(t, "the dead cell is swept", func() bool {
		Sweep(t)
		_, err := os.Stat(filepath.Join("/run/sandbox", id))
		return err != nil
	})
	for _, dir := range []string{"/run", "/sys/fs/cgroup"} {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
			require.NotContains(t, path, id, msgAndArgs...)
			return nil
		})
	}
}

// Daemon is what a module has to say about its daemon.
type Daemon struct {
	Runtime string // as CellRuntime has it

	// Containers returns the containers that the daemon has of a cell, all cells if id is "".
	Containers func(t testing.TB, id string) []string

	// Left returns these and whatever else there is of a cell until the next one is made.
	Left func(t testing.TB, id string) []string
}

func (d Daemon) cell(t testing.TB) (*sandbox.Cell, sandbox.Option) {
	t.Helper()
	c, err := sandbox.NewCell(sandbox.CellRuntime(d.Runtime))
	require.NoError(t, err)
	return c, sandbox.WithCell(c)
}

// Run tests that a run can do what it can in any cell, and that its limits hold.
func (d Daemon) Run(t *testing.T) {
	ctx := testkit.Deadline(t)
	cell, in := d.cell(t)
	require.Equal(t, "1000 sandbox\n1", runs.Output(t, runs.Shell("echo $(id -u) $(hostname); ls /proc | grep -c '^1$'", in)))
	_, err := runs.Shell("exit 7", in).Run(ctx)
	var exit *sandbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, exit.ExitCode)
	_, err = runs.Shell("tail /dev/zero", in, sandbox.WithMemory(32*sandbox.MiB)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	_, err = runs.Shell("sleep 1000", in, sandbox.WithTimeout(100*time.Millisecond)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	p := runs.Start(t, runs.Shell("exec sleep 1000", in))
	e, err := p.Exec(ctx, sandbox.WithCommand("true"))
	require.NoError(t, err)
	_, err = e.Wait()
	require.NoError(t, err)
	require.NoError(t, p.Pause())
	require.NoError(t, p.Resume())
	id := CellOf(os.Getpid()) // others on this machine may have cells of the daemon too
	require.NotEmpty(t, d.Left(t, id))
	require.NoError(t, cell.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.Empty(t, d.Left(t, id))
}

// BreakOut tests that what breaks out of a run is nobody on the host, whatever root in the daemon's
// containers is, and that it does not see the daemon's own container. The process that is outside
// of the cell's user namespace has no right left.
func (d Daemon) BreakOut(t *testing.T) {
	cell, in := d.cell(t)
	defer func() { require.NoError(t, cell.Close()) }()
	run := runs.Start(t, runs.Shell("exec sleep 1000", in)).PID()
	init := run
	// Of the host, the daemon's container, the cell.
	for len(strings.Fields(status(t, init)["NSpid"])) > 3 {
		init = testkit.Parent(t, init)
	}
	for parent := testkit.Parent(t, init); len(strings.Fields(status(t, parent)["NSpid"])) == 3; parent = testkit.Parent(t, init) {
		init = parent
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", init))
	require.NoError(t, err)
	for line := range strings.Lines(string(maps)) {
		require.NotEqual(t, "0", strings.Fields(line)[1], "the cell's root is the host's")
	}
	var found []string
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", init))
	require.NoError(t, err)
	for _, e := range entries {
		found = append(found, e.Name())
	}
	require.Equal(t, []string{"cell", "dev", "proc"}, found)

	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", init))
	require.NoError(t, err)
	for _, fd := range fds {
		// "/" is a file whose mount is gone.
		target, err := os.Readlink(fd)
		require.NoError(t, err)
		require.Regexp(t, "^(/|/dev/null|/memfd:.*|/run/sandbox/ids|[a-z_]+:.*)$", target)
	}

	receiver := status(t, testkit.Parent(t, init))
	require.Equal(t, "65534\t65534\t65534\t65534", receiver["Uid"])
	require.Equal(t, "65534\t65534\t65534\t65534", receiver["Gid"])
	require.Empty(t, receiver["Groups"])
	// Of what is inheritable it can have nothing: nothing in the container is a file that says
	// so.
	for _, set := range []string{"CapPrm", "CapEff", "CapAmb"} {
		require.Equal(t, strings.Repeat("0", 16), receiver[set], set)
	}
}

// status returns fields of a process's status.
func status(t testing.TB, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

// KilledHost tests that a host process that is killed leaves no run, no container and, after the
// next cell, nothing else.
func (d Daemon) KilledHost(t *testing.T) {
	mark := testkit.ALongTime()
	host := testkit.HelperCommand(context.Background(), Helper, d.Runtime, mark)
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	id := CellOf(host.Process.Pid)
	require.NotEmpty(t, d.Containers(t, id))
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
	testkit.Eventually(t, "the container is gone", func() bool { return len(d.Containers(t, id)) == 0 })
	Swept(t, id)
	require.Empty(t, d.Left(t, id))
}

// KilledBoot tests the same of one that is killed on the way to its cell, when that has a name and
// each of the moments has come.
func (d Daemon) KilledBoot(t *testing.T, moments ...func(id string) bool) {
	for _, when := range moments {
		mark := testkit.ALongTime()
		host := testkit.HelperCommand(context.Background(), Helper, d.Runtime, mark)
		require.NoError(t, host.Start())
		var id string
		testkit.Eventually(t, "the cell has a name", func() bool {
			id = CellOf(host.Process.Pid)
			return id != "" && when(id)
		})
		require.NoError(t, host.Process.Kill())
		_ = host.Wait()
		testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
		testkit.Eventually(t, "nothing is left", func() bool {
			Sweep(t) // the daemon may still be at work for the one that was killed
			return len(d.Left(t, id)) == 0
		})
		Swept(t, id)
	}
}
