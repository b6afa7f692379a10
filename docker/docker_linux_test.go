package docker

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

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func init() { testkit.AddHelper("docked", dockedHelper) }

// needDaemon skips the test where no daemon answers.
func needDaemon(t *testing.T) *daemon {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "Docker's daemon")
	d, err := ask()
	require.NoError(t, err)
	return d
}

// left returns the names of containers and images that this package has made for the cell.
func (d *daemon) left(t *testing.T, id string) (names []string) {
	t.Helper()
	ctx := testkit.Deadline(t)
	containers, err := d.api.ContainerList(ctx, client.ContainerListOptions{All: true})
	require.NoError(t, err)
	for _, c := range containers.Items {
		names = append(names, c.Names...)
	}
	images, err := d.api.ImageList(ctx, client.ImageListOptions{All: true})
	require.NoError(t, err)
	for _, i := range images.Items {
		names = append(names, i.RepoTags...)
	}
	var its []string
	for _, name := range names {
		if strings.Contains(name, prefix+id) {
			its = append(its, name)
		}
	}
	return its
}

// status returns fields of a process's status.
func status(t *testing.T, pid int) map[string]string {
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

// A run can do what it can in any cell, and its limits hold.
func TestRun(t *testing.T) {
	d := needDaemon(t)
	ctx := testkit.Deadline(t)
	cell, err := sandbox.NewCell(sandbox.CellRuntime("docker"))
	require.NoError(t, err)
	in := sandbox.WithCell(cell)
	require.Equal(t, "1000 sandbox\n1", runs.Output(t, runs.Shell("echo $(id -u) $(hostname); ls /proc | grep -c '^1$'", in)))
	_, err = runs.Shell("exit 7", in).Run(ctx)
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
	require.NotEmpty(t, d.left(t, ""))
	require.NoError(t, cell.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	require.Empty(t, d.left(t, ""))
}

// What breaks out of a run is nobody on the host, whatever root in Docker's containers is; nor does
// it see Docker's own container. The process that is outside of the cell's user namespace has no
// right left.
func TestAttackBreakOut(t *testing.T) {
	needDaemon(t)
	cell, err := sandbox.NewCell(sandbox.CellRuntime("docker"))
	require.NoError(t, err)
	defer func() { require.NoError(t, cell.Close()) }()
	run := runs.Start(t, runs.Shell("exec sleep 1000", sandbox.WithCell(cell))).PID()
	init := run
	// Of the host, Docker's container, the cell.
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
	root := fmt.Sprintf("/proc/%d/root", init)
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	for _, e := range entries {
		found = append(found, e.Name())
	}
	require.Equal(t, []string{"cell", "dev", "proc"}, found)

	receiver := status(t, testkit.Parent(t, init))
	require.Equal(t, "65534\t65534\t65534\t65534", receiver["Uid"])
	require.Equal(t, "65534\t65534\t65534\t65534", receiver["Gid"])
	require.Empty(t, receiver["Groups"])
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		require.Equal(t, strings.Repeat("0", 16), receiver[set], set)
	}
}

// dockedHelper is a host process with a run in a cell of Docker. It prints the pid of the run.
func dockedHelper(args []string) error {
	c, err := sandbox.NewCell(sandbox.CellRuntime("docker"))
	if err != nil {
		return err
	}
	p, err := sandbox.New(sandbox.WithCommand("sleep", args[0]), sandbox.WithCell(c)).Start(context.Background())
	if err != nil {
		return err
	}
	fmt.Println(p.PID())
	_, err = p.Wait()
	return err
}

// noFiles requires that nothing below /run and the cgroups has the name of a cell.
func noFiles(t *testing.T, id string) {
	t.Helper()
	for _, dir := range []string{"/run/sandbox", "/sys/fs/cgroup"} {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
			require.NotContains(t, path, id)
			return nil
		})
	}
}

// A host process that is killed leaves no run, no container and, after the next cell, no image and
// no file.
func TestKilledHost(t *testing.T) {
	d := needDaemon(t)
	mark := testkit.ALongTime()
	host := testkit.HelperCommand(context.Background(), "docked", mark)
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	id := cellOf(t, host.Process.Pid)
	require.NotEmpty(t, d.left(t, id))
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
	testkit.Eventually(t, "the container is gone", func() bool {
		return !strings.Contains(strings.Join(d.left(t, id), " "), "/"+prefix)
	})
	sweep(t)
	require.Empty(t, d.left(t, id))
	noFiles(t, id)
}

// Nor does one that is killed on the way to its cell, as soon as that has a name, or as the daemon
// knows its image or its container.
func TestKilledBoot(t *testing.T) {
	d := needDaemon(t)
	for _, when := range []string{"", prefix, "/" + prefix} {
		mark := testkit.ALongTime()
		host := testkit.HelperCommand(context.Background(), "docked", mark)
		require.NoError(t, host.Start())
		var id string
		testkit.Eventually(t, "the cell has a name", func() bool {
			id = cellOf(t, host.Process.Pid)
			return id != "" && (when == "" || strings.Contains(" "+strings.Join(d.left(t, id), " "), " "+when))
		})
		require.NoError(t, host.Process.Kill())
		_ = host.Wait()
		testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
		testkit.Eventually(t, "nothing is left", func() bool {
			sweep(t) // the daemon may still be at work for the one that was killed
			return len(d.left(t, id)) == 0
		})
		noFiles(t, id)
	}
}

// sweep makes a cell, which removes what others have left.
func sweep(t *testing.T) {
	t.Helper()
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

// cellOf returns the name of the cell that a process has or is making, or "".
func cellOf(t *testing.T, pid int) string {
	t.Helper()
	locks, err := filepath.Glob("/run/sandbox/*/lock")
	require.NoError(t, err)
	for _, lock := range locks {
		owner, err := os.ReadFile(lock)
		if err == nil && strings.TrimSpace(string(owner)) == fmt.Sprint(pid) {
			return filepath.Base(filepath.Dir(lock))
		}
	}
	return ""
}

// Who names Docker where it does not answer gets to know what to do.
func TestNoDaemon(t *testing.T) {
	testkit.Need(t, "root")
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "none"))
	_, err := sandbox.NewCell(sandbox.CellRuntime("docker"))
	require.ErrorContains(t, err, "docker's daemon does not answer")
	require.ErrorContains(t, err, "apt-get install docker.io")
	said, err := testkit.HelperCommand(context.Background(), "docked", testkit.ALongTime()).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(said), "docker's daemon does not answer")
	t.Setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
	_, err = sandbox.NewCell(sandbox.CellRuntime("docker"))
	require.ErrorContains(t, err, "DOCKER_HOST is tcp://127.0.0.1:1")
}
