//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/internal/testkit/walltest"
)

// walls are the container runtimes that the tests know, beside what is linked into this program.
var walls = []string{"runc", "crun", "systemd-nspawn", "lxc"}

// eachWall runs a test in a cell of each runtime that is installed.
func eachWall(t *testing.T, do func(t *testing.T, name string)) {
	for _, name := range walls {
		t.Run(name, func(t *testing.T) {
			testkit.Need(t, "a whole machine's root")
			testkit.Need(t, name)
			do(t, name)
		})
	}
}

func newWalled(t *testing.T, opts ...sandbox.CellOption) (*sandbox.Cell, sandbox.Option) {
	t.Helper()
	c, err := sandbox.NewCell(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c, sandbox.WithCell(c)
}

// What runs can do depends on nothing that makes their cell.
func TestWalls(t *testing.T) {
	t.Parallel()
	eachWall(t, func(t *testing.T, name string) {
		ctx := testkit.Deadline(t)
		cell, in := newWalled(t, sandbox.CellRuntime(name))

		require.Equal(t, "1000 sandbox\n1", runs.Output(t, runs.Shell("echo $(id -u) $(hostname); ls /proc | grep -c '^1$'", in)))
		_, err := runs.Shell("exit 7", in).Run(ctx)
		var exit *sandbox.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 7, exit.ExitCode)
		require.Equal(t, "allocated", runs.Output(t, runs.Helper("alloc", "1").With(in)))
		require.Equal(t, "busybox", runs.Output(t, runs.Shell("echo busybox", in, sandbox.WithRootfs(sandbox.DirRootfs(testkit.BusyboxRoot(t))))))
		require.Equal(t, "hidden", runs.Output(t, runs.Shell("echo hidden >/usr/new && cat /usr/new", in, sandbox.WithWritableRoot(sandbox.MiB))))

		result, err := runs.Shell("tail /dev/zero", in, sandbox.WithMemory(32*sandbox.MiB)).Run(ctx)
		require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
		require.Positive(t, result.Usage.OOMKills)
		_, err = runs.Shell("(true) && (true)", in, sandbox.WithPIDs(1)).Run(ctx)
		require.ErrorIs(t, err, sandbox.ErrPIDLimit)
		_, err = runs.Shell("sleep 1000", in, sandbox.WithTimeout(100*time.Millisecond)).Run(ctx)
		require.ErrorIs(t, err, sandbox.ErrTimeout)

		scratch, err := sandbox.NewScratch(sandbox.MiB)
		require.NoError(t, err)
		defer scratch.Close()
		kept := sandbox.WithScratch("/kept", scratch)
		p := runs.Start(t, runs.Shell("echo one >/kept/f; mkdir /tmp/there; exec sleep 1000", in, kept))
		testkit.Eventually(t, "the run is ready", func() bool {
			e, err := p.Exec(ctx, sandbox.WithCommand("test", "-d", "/tmp/there"))
			if err != nil {
				return false
			}
			_, err = e.Wait()
			return err == nil
		})
		require.NoError(t, p.Pause())
		require.NoError(t, p.Resume())
		require.NoError(t, p.Kill())
		_, err = p.Wait()
		require.Error(t, err)
		require.Equal(t, "one", runs.Output(t, runs.Shell("cat /kept/f", in, kept)))

		require.Equal(t, "prepared", runs.Output(t, runs.Prepared(t, 1, in).With(sandbox.WithCommand("echo", "prepared"))))
		terminal := watch(t, runs.Start(t, sandbox.New(sandbox.WithCommand("sh"), sandbox.WithTerminal(24, 80), in)))
		terminal.typed(t, "tty; exit\n")
		terminal.shows(t, `/dev/pts/[0-9]+\r\n`)

		require.NoError(t, cell.Close())
		_, err = runs.Shell("true", in).Run(ctx)
		require.ErrorIs(t, err, sandbox.ErrCellLost)
	})
}

// Private networks and the host's.
func TestWallsNetwork(t *testing.T) {
	t.Parallel()
	eachWall(t, func(t *testing.T, name string) {
		_, in := newWalled(t, sandbox.CellRuntime(name))
		n, err := sandbox.NewNetwork()
		require.NoError(t, err)
		defer n.Close()
		on := func(name string) sandbox.Option { return sandbox.WithNetwork(n.As(name)) }
		web := runs.Start(t, runs.Helper("listen", "web", ":80").With(in, on("web"), sandbox.WithPublish("127.0.0.1:0", 80)))
		testkit.Eventually(t, "the run answers", func() bool { return reach(web.Published()[0].String()) == "web: hello" })
		require.Equal(t, "web: hello", runs.Output(t, runs.Helper("reach", "web:80").With(in, on("other"))))

		_, in = newWalled(t, sandbox.CellRuntime(name), sandbox.CellNetwork(sandbox.NetworkHost))
		of := runs.Output(t, runs.Shell("readlink /proc/self/ns/net", in, sandbox.WithNetwork(sandbox.NetworkHost)))
		own, err := os.Readlink("/proc/self/ns/net")
		require.NoError(t, err)
		require.Equal(t, own, of)
	})
}

// initOf returns the pid of PID 1 of the cell that a run is in: its last ancestor that is the fork
// server.
func initOf(t *testing.T, run int) (pid int) {
	t.Helper()
	for above := run; above != 0; above = testkit.Parent(t, above) {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", above))
		if string(args) == "/proc/self/fd/4\x00sandbox-forkserver\x00" {
			pid = above
		}
	}
	require.NotZero(t, pid)
	return pid
}

// view returns what a process that took over PID 1 of a cell would have before it.
func view(t *testing.T, pid int) map[string]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	is := map[string]string{}
	for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"} {
		of, err := os.Readlink(dir + "ns/" + ns)
		require.NoError(t, err)
		own, err := os.Readlink("/proc/self/ns/" + ns)
		require.NoError(t, err)
		is["namespace "+ns] = fmt.Sprint("own: ", of != own)
	}
	mounts, err := os.ReadFile(dir + "mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		shared := strings.Contains(line, " shared:") || strings.Contains(line, " master:")
		if strings.HasPrefix(f[4], "/cell/") || strings.HasPrefix(f[4], "/dev/") {
			continue // templates; devices are nodes or mounts
		}
		is["mount "+f[4]] += fmt.Sprint("shared: ", shared, " ")
	}
	for _, at := range []string{"", "dev", "cell"} {
		entries, err := os.ReadDir(dir + "root/" + at)
		require.NoError(t, err)
		for _, e := range entries {
			is["file "+at+"/"+e.Name()] = e.Type().String()
		}
	}
	fds, err := os.ReadDir(dir + "fd")
	require.NoError(t, err)
	for _, fd := range fds {
		target, err := os.Readlink(dir + "fd/" + fd.Name())
		require.NoError(t, err)
		kind, _, _ := strings.Cut(target, ":[") // of sockets, pipes and namespaces
		is["descriptor "+fd.Name()] = kind
	}
	env, err := os.ReadFile(dir + "environ")
	require.NoError(t, err)
	for v := range strings.SplitSeq(strings.TrimSuffix(string(env), "\x00"), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		is["variable "+name] = value
	}
	// The cell's root is nobody special outside.
	ids, err := os.ReadFile(dir + "uid_map")
	require.NoError(t, err)
	for line := range strings.Lines(string(ids)) {
		f := strings.Fields(line)
		is["id map"] = fmt.Sprint("host's root: ", slices.Contains(f[1:2], "0"))
	}
	return is
}

// What breaks out of a run finds the same in the cell, whoever has made it.
func TestAttackWallsView(t *testing.T) {
	t.Parallel()
	var want map[string]string
	var passed []string // what PID 1 has open
	const hostVariable = "HOST_SECRET_OF_WALLS"
	require.NoError(t, os.Setenv(hostVariable, "1")) // not t.Setenv: this test is parallel
	eachWall(t, func(t *testing.T, name string) {
		if want == nil {
			_, in := newWalled(t)
			want = view(t, initOf(t, runs.Start(t, runs.Shell("exec sleep 1000", in)).PID()))
			for what, is := range want {
				if strings.HasPrefix(what, "descriptor ") {
					passed = append(passed, is)
				}
			}
			require.Equal(t, "own: true", want["namespace user"])
			require.Equal(t, "own: false", want["namespace cgroup"])
			require.Equal(t, "host's root: false", want["id map"])
		}
		_, in := newWalled(t, sandbox.CellRuntime(name))
		p := runs.Start(t, runs.Shell("exec sleep 1000", in))
		got := view(t, initOf(t, p.PID()))
		for what, is := range got {
			switch number, isFD := strings.CutPrefix(what, "descriptor "); {
			case strings.HasPrefix(what, "variable "):
				require.NotEqual(t, what, "variable "+hostVariable)
			case !isFD:
				require.Equal(t, want[what], is, what)
			case slices.Contains([]string{"0", "1", "2"}, number):
				// "/" is a file whose mount is gone.
				require.Regexp(t, "^(pipe|/|/dev/null|/memfd:stderr .*)$", is)
			default:
				require.Contains(t, passed, is, what)
			}
		}
		for what := range want { // libcontainer's has this program's libraries besides
			if !strings.HasPrefix(what, "mount /lib") && !strings.HasPrefix(what, "mount /usr") && !strings.HasPrefix(what, "file ") && !strings.HasPrefix(what, "variable ") && !strings.HasPrefix(what, "descriptor ") {
				require.Contains(t, got, what)
			}
		}
		// Two cells share no ids, in whatever pieces these are mapped.
		_, other := newWalled(t, sandbox.CellRuntime(name))
		q := runs.Start(t, runs.Shell("exec sleep 1000", other))
		require.NotEqual(t, uidOf(t, p.PID()), uidOf(t, q.PID()))
		require.NotEqual(t, uidOf(t, initOf(t, p.PID())), uidOf(t, initOf(t, q.PID())))
	})
}

// uidOf returns the user id of a process.
func uidOf(t *testing.T, pid int) uint32 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, ids, _ := strings.Cut(string(b), "\nUid:\t")
	var uid uint32
	_, err = fmt.Sscan(ids, &uid)
	require.NoError(t, err)
	return uid
}

// A host process that is killed leaves nothing: no process of the run, the cell or the runtime, and
// after the next cell has been made no cgroup and no file of theirs. Nor if the runtime is killed
// before, which then can't clean up.
func TestWallsKilledHost(t *testing.T) {
	t.Parallel()
	eachWall(t, func(t *testing.T, name string) {
		for _, first := range []string{"host", "runtime"} {
			mark := testkit.ALongTime()
			host := testkit.HelperCommand(context.Background(), walltest.Helper, name, mark)
			out, err := host.StdoutPipe()
			require.NoError(t, err)
			host.Stderr = os.Stderr
			require.NoError(t, host.Start())
			t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			var run int
			_, err = fmt.Sscan(line, &run)
			require.NoError(t, err)
			id := filepath.Base(cellGroup(run))
			require.Len(t, id, 16)
			runtime := testkit.ChildrenOf(host.Process.Pid)
			require.NotEmpty(t, runtime)
			require.NotEmpty(t, belongs(id), "the runtime's command names the cell")

			if first == "runtime" {
				for _, pid := range runtime {
					require.NoError(t, unix.Kill(pid, unix.SIGKILL))
				}
			}
			require.NoError(t, host.Process.Kill())
			_ = host.Wait()
			testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
			testkit.Eventually(t, "the runtime is gone", func() bool { return len(belongs(id)) == 0 })

			walltest.Swept(t, id, "%s was killed first", first)
		}
	})
}

// A host process that is killed at any moment of the boot leaves nothing either, though the next
// cell is made at once, while the runtime may still be at work. What that one can't remove then,
// the one after it does.
func TestWallsKilledBoot(t *testing.T) {
	testkit.Need(t, "a whole machine's root")
	for _, name := range append([]string{"libcontainer", "builtin"}, walls...) {
		t.Run(name, func(t *testing.T) {
			if slices.Contains(walls, name) {
				testkit.Need(t, name)
			}
			for range 3 {
				mark := testkit.ALongTime()
				host := testkit.HelperCommand(context.Background(), walltest.Helper, name, mark)
				require.NoError(t, host.Start())
				moment := rand.N(time.Second)
				time.Sleep(moment)
				id := walltest.CellOf(host.Process.Pid)
				require.NoError(t, host.Process.Kill())
				_ = host.Wait()
				if id == "" {
					id = walltest.CellOf(host.Process.Pid)
				}
				walltest.Sweep(t)
				testkit.Eventually(t, "its processes are gone", func() bool { return len(testkit.Running(mark)) == 0 })
				if id == "" {
					continue // it had not begun
				}
				testkit.Eventually(t, "the runtime is gone", func() bool { return len(belongs(id)) == 0 })
				// What the runtime held on to, such as its cgroup: the cell's
				// directory names it.
				walltest.Swept(t, id, "killed after %v", moment)
			}
		})
	}
}

// belongs returns the processes whose command lines name a cell.
func belongs(id string) (pids []int) {
	for _, pid := range testkit.Processes() {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(b), id) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Runs of a cell whose PID 1 is killed report that, as in any other, and so if the runtime is.
func TestWallsKilledCell(t *testing.T) {
	t.Parallel()
	eachWall(t, func(t *testing.T, name string) {
		for _, victim := range []string{"PID 1", "runtime"} {
			cell, in := newWalled(t, sandbox.CellRuntime(name))
			p := runs.Start(t, runs.Shell("exec sleep 1000", in))
			pid := initOf(t, p.PID())
			id := filepath.Base(cellGroup(p.PID()))
			if victim == "runtime" {
				for pid = testkit.Parent(t, pid); testkit.Parent(t, pid) != os.Getpid(); pid = testkit.Parent(t, pid) {
				}
			}
			require.NoError(t, unix.Kill(pid, unix.SIGKILL))
			_, err := p.Wait()
			require.ErrorIs(t, err, sandbox.ErrCellLost, victim)
			_, err = runs.Shell("true", in).Run(testkit.Deadline(t))
			require.ErrorIs(t, err, sandbox.ErrCellLost, victim)
			require.NoError(t, cell.Close())
			require.Empty(t, belongs(id))
		}
	})
}

// What is in this program is for everybody.
func TestRootlessWallsLinked(t *testing.T) {
	_, in := newWalled(t, sandbox.CellRuntime("builtin"))
	require.Equal(t, "1000 sandbox", runs.Output(t, runs.Shell("echo $(id -u) $(hostname)", in)))
	_, err := sandbox.NewCell(sandbox.CellRuntime("own"))
	var option *sandbox.OptionError
	require.ErrorAs(t, err, &option)
	require.ErrorContains(t, err, "use one of libcontainer, builtin, runc")
}

// Errors name what is missing and what to do.
func TestWallsMissing(t *testing.T) {
	testkit.Need(t, "root")
	t.Setenv("PATH", "/nonexistent")
	_, err := sandbox.NewCell(sandbox.CellRuntime("systemd-nspawn"))
	var setup *sandbox.SetupError
	require.ErrorAs(t, err, &setup)
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.Contains(t, setup.Hint, "systemd-container")
}

// Ordinary users can have cells by runc, with what any cell of theirs has. For the others an error
// says what to do.
func TestRootlessWallsUser(t *testing.T) {
	testkit.Need(t, "an ordinary user")
	for _, name := range walls {
		t.Run(name, func(t *testing.T) {
			testkit.Need(t, name)
			if name != "runc" {
				_, err := sandbox.NewCell(sandbox.CellRuntime(name))
				runs.SetupError(t, err, name+" takes a process of root with CAP_SYS_ADMIN, in the machine's own user namespace", "run this program as root, or leave CellRuntime out")
				return
			}
			cell, in := newWalled(t, sandbox.CellRuntime(name))
			require.Equal(t, "1000 sandbox", runs.Output(t, runs.Shell("echo $(id -u) $(hostname)", in)))
			require.Equal(t, "busybox", runs.Output(t, runs.Shell("echo busybox", in, sandbox.WithRootfs(sandbox.DirRootfs(testkit.BusyboxRoot(t))))))
			t.Run("limits", func(t *testing.T) {
				testkit.Need(t, "limits")
				userLimits(t, name)
			})
			p := runs.Start(t, runs.Shell("exec sleep 1000", in, sandbox.WithReadOnlyBind("/etc/passwd", "/bound")))
			require.Contains(t, inRun(t, p, "cat /bound"), "root:")
			require.NoError(t, cell.Close())
			_, err := p.Wait()
			require.ErrorIs(t, err, sandbox.ErrCellLost)

			mark := testkit.ALongTime()
			host := testkit.HelperCommand(context.Background(), "walled", name, mark)
			out, err := host.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, host.Start())
			t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			var run int
			_, err = fmt.Sscan(line, &run)
			require.NoError(t, err)
			group := cellGroup(run) // "" without cgroups
			runtime := testkit.ChildrenOf(host.Process.Pid)
			require.NotEmpty(t, runtime)
			require.NoError(t, host.Process.Kill())
			_ = host.Wait()
			testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
			testkit.Eventually(t, "the runtime is gone", func() bool {
				return !slices.ContainsFunc(testkit.Processes(), func(pid int) bool { return slices.Contains(runtime, pid) })
			})
			walltest.Sweep(t)
			if group != "" {
				require.NoDirExists(t, group)
			}
		})
	}
}

// userLimits has runs in a cell of an ordinary user reach limits, in cgroups that go with the cell.
func userLimits(t *testing.T, name string) {
	ctx := testkit.Deadline(t)
	cell, in := newWalled(t, sandbox.CellRuntime(name))
	_, err := runs.Shell("tail /dev/zero", in, sandbox.WithMemory(32*sandbox.MiB)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	_, err = runs.Shell("(true) && (true)", in, sandbox.WithPIDs(1)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	p := runs.Start(t, runs.Shell("exec sleep 1000", in))
	require.NoError(t, p.Pause())
	require.NoError(t, p.Resume())
	group := cellGroup(p.PID())
	require.DirExists(t, group)
	require.NoError(t, cell.Close())
	require.NoDirExists(t, group)
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

// checkedWalls returns the rows of Check about what makes cells, by its name.
func checkedWalls(t *testing.T) map[string]sandbox.Feature {
	t.Helper()
	rows := map[string]sandbox.Feature{}
	for _, f := range sandbox.Check(testkit.Deadline(t)).Features {
		if name, ok := strings.CutPrefix(f.Name, "CellRuntime("); ok {
			rows[strings.TrimSuffix(name, ")")] = f
		}
	}
	require.ElementsMatch(t, spec.Walls(), slices.Collect(maps.Keys(rows)))
	return rows
}

// Check makes a cell with each wall that is there.
func TestWallsCheck(t *testing.T) {
	t.Parallel()
	rows := checkedWalls(t)
	require.NoError(t, rows["builtin"].Err)
	works := func(t *testing.T, name string) {
		require.NoError(t, rows[name].Err)
		require.Regexp(t, `[0-9]\.[0-9]|[0-9]{3}`, rows[name].Detail)
	}
	eachWall(t, works)
	t.Run("runsc", func(t *testing.T) {
		needGVisor(t)
		require.NoError(t, rows["runsc"].Err)
		require.Contains(t, rows["runsc"].Detail, "runsc version") // Go's own build has no more
	})
}

// Where none is installed, Check says of each how to get it.
func TestWallsCheckMissing(t *testing.T) {
	testkit.Need(t, "root")
	t.Setenv("PATH", "/nonexistent")
	rows := checkedWalls(t)
	require.NoError(t, rows["builtin"].Err)
	for name, remedy := range map[string]string{
		"runc": "apt-get install runc", "crun": "apt-get install crun", "systemd-nspawn": "apt-get install systemd-container", "lxc": "apt-get install lxc",
		"youki": "install youki", "runsc": "install runsc", "docker": `import _ "github.com/cellkit/sandbox/docker"`, "libvirt": `import _ "github.com/cellkit/sandbox/libvirt"`,
	} {
		if name == testkit.Wall {
			continue // it is in this program, with its daemon
		}
		require.Error(t, rows[name].Err, name)
		require.Contains(t, rows[name].Remedy, remedy)
	}
}
