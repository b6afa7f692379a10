//go:build linux

package limits

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

const mib = 1 << 20

func TestMemoryLimit(t *testing.T) {
	s := Spec{Memory: 32 * mib}
	g, err := testCell(t, s).Create("run", s)
	require.NoError(t, err)
	c := start(t, g, "exec tail /dev/zero") // keeps what it reads until a line ends
	assert.Equal(t, unix.SIGKILL, c.signal())

	kills, err := g.OOMKills()
	require.NoError(t, err)
	assert.Contains(t, []uint64{1, 2}, kills, "v2 may count the first one twice")
	u, err := g.Usage()
	require.NoError(t, err)
	assert.Equal(t, kills, u.OOMKills)
	assert.LessOrEqual(t, u.MemoryPeak, uint64(32*mib))
	if g.v2 == "" || exists(g.v2+"/memory.peak") {
		assert.Greater(t, u.MemoryPeak, uint64(24*mib))
	}
	assert.Positive(t, u.UserCPU+u.SystemCPU)
}

func TestNoMemoryNoOOM(t *testing.T) {
	g, err := testCell(t, Spec{}).Create("run", Spec{})
	require.NoError(t, err)
	c := start(t, g, "head -c 8000000 /dev/zero | tail | wc -c")
	assert.Equal(t, "8000000", strings.TrimSpace(c.output(t)))
	kills, err := g.OOMKills()
	require.NoError(t, err)
	assert.Zero(t, kills)
}

func TestSwapLimit(t *testing.T) {
	s := Spec{Memory: 32 * mib, Swap: 8 * mib}
	cell := testCell(t, Spec{Memory: s.Memory})
	g, err := cell.Create("run", s)
	if !cell.swap {
		require.ErrorContains(t, err, "WithSwap")
		return
	}
	require.NoError(t, err)
	if g.v2 != "" {
		assert.Equal(t, []string{"8388608"}, readWords(g.v2+"/memory.swap.max"))
	} else {
		assert.Equal(t, []string{"41943040"}, readWords(g.counters.(*countersV1).memory+"/memory.memsw.limit_in_bytes"))
	}
}

func TestPIDsLimit(t *testing.T) {
	s := Spec{PIDs: 4}
	g, err := testCell(t, s).Create("run", s)
	require.NoError(t, err)
	c := start(t, g, "for i in 1 2 3 4 5 6; do sleep 1000 & done; echo unlimited")
	out := c.output(t)
	assert.NotContains(t, out, "unlimited")
	assert.Contains(t, strings.ToLower(out), "fork")
	u, err := g.Usage()
	require.NoError(t, err)
	if u.PIDsPeak != 0 { // a kernel that has pids.peak
		assert.EqualValues(t, 4, u.PIDsPeak)
	}
	assert.Positive(t, u.PIDsRefused)
	require.NoError(t, g.Kill())
	population(t, g, 0)
}

func TestCPUQuota(t *testing.T) {
	s := Spec{CPUs: 0.2}
	g, err := testCell(t, s).Create("run", s)
	require.NoError(t, err)
	begin := time.Now()
	start(t, g, "while :; do :; done")
	time.Sleep(3 * time.Second)
	used, err := g.CPU()
	wall := time.Since(begin)
	require.NoError(t, err)
	ratio := float64(used) / float64(wall)
	assert.Greater(t, ratio, 0.02)
	assert.Less(t, ratio, 0.4, "%v of CPU in %v", used, wall)

	u, err := g.Usage()
	require.NoError(t, err)
	assert.Positive(t, u.Throttled)
	assert.GreaterOrEqual(t, u.UserCPU+u.SystemCPU+time.Millisecond, used)
}

func TestCPUWeight(t *testing.T) {
	s := Spec{CPUWeight: 50}
	cell := testCell(t, s)
	g, err := cell.Create("run", s)
	require.NoError(t, err)
	if g.v2 != "" {
		assert.Equal(t, []string{"50"}, readWords(g.v2+"/cpu.weight"))
	} else {
		assert.Equal(t, []string{"512"}, readWords(path.Join(cell.tree.v1["cpu"], g.path, "cpu.shares")))
	}
}

func TestCPUSet(t *testing.T) {
	cell := testCell(t, Spec{CPUSet: "0"})
	g, err := cell.Create("run", Spec{CPUSet: "0"})
	require.NoError(t, err)
	c := start(t, g, "grep Cpus_allowed_list /proc/self/status")
	assert.Equal(t, []string{"Cpus_allowed_list:", "0"}, strings.Fields(c.output(t)))

	err = cell.tree.Missing(Spec{CPUSet: "0,8000"})
	assert.ErrorContains(t, err, "WithCPUSet")
	assert.ErrorContains(t, err, "8000")
}

func TestFreeze(t *testing.T) {
	g, err := testCell(t, Spec{}).Create("run", Spec{})
	require.NoError(t, err)
	start(t, g, "while :; do :; done")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, g.Freeze(ctx))
	before, err := g.CPU()
	require.NoError(t, err)
	time.Sleep(300 * time.Millisecond)
	after, err := g.CPU()
	require.NoError(t, err)
	assert.InDelta(t, float64(before), float64(after), float64(5*time.Millisecond))

	require.NoError(t, g.Thaw())
	require.Eventually(t, func() bool {
		now, err := g.CPU()
		return err == nil && now > after+20*time.Millisecond
	}, time.Minute, 10*time.Millisecond)

	canceled, cancel := context.WithCancel(ctx)
	cancel()
	assert.ErrorIs(t, g.Freeze(canceled), context.Canceled)
}

func TestKillTree(t *testing.T) {
	for name, frozen := range map[string]bool{"running": false, "frozen": true} {
		t.Run(name, func(t *testing.T) {
			g, err := testCell(t, Spec{}).Create("run", Spec{})
			require.NoError(t, err)
			c := start(t, g, "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'sleep 1000 & sleep 1000' &) ; done; sleep 1000")
			population(t, g, 20)
			if frozen {
				require.NoError(t, g.Freeze(t.Context()))
			}
			require.NoError(t, g.Kill())
			assert.Equal(t, unix.SIGKILL, c.signal())
			population(t, g, 0)
			assert.ErrorContains(t, g.Freeze(t.Context()), "killed")
			require.NoError(t, g.Kill(), "again")
			require.NoError(t, g.Delete())
			require.NoError(t, g.Kill(), "and when it is gone")
		})
	}
}

func TestKillForkBomb(t *testing.T) {
	s := Spec{PIDs: 300}
	cell := testCell(t, s)
	for _, way := range []string{"cgroup.kill", "pidfd"} {
		g, err := cell.Create(strings.ReplaceAll(way, ".", "-"), s)
		require.NoError(t, err)
		cmd := testkit.HelperCommand(context.Background(), "fork bomb")
		startCmd(t, g, cmd)
		population(t, g, 200)
		if way == "pidfd" {
			g.v2 = "" // as on v1, and on kernels before 5.14
		}
		begin := time.Now()
		require.NoError(t, g.Delete())
		t.Logf("%s: deleted in %v", way, time.Since(begin))
		requireGone(t, g.Path())
		_ = cmd.Wait()
	}
}

func TestDeleteWithMembers(t *testing.T) {
	g, err := testCell(t, Spec{}).Create("run", Spec{})
	require.NoError(t, err)
	start(t, g, "sleep 1000 & sleep 1000")
	require.NoError(t, g.Delete())
	requireGone(t, g.Path())
	require.NoError(t, g.Delete(), "again")
	_, err = g.Usage()
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

// TestKeep reads kept counters after the run has ended. Nothing stays open once the group is
// deleted.
func TestKeep(t *testing.T) {
	g, err := testCell(t, Spec{}).Create("run", Spec{})
	require.NoError(t, err)
	before, err := g.Usage()
	require.NoError(t, err)
	g.Keep()
	kept := g.files.kept
	require.NotEmpty(t, kept)
	require.LessOrEqual(t, len(kept), 7)
	for name, fd := range kept {
		open, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		require.NoError(t, err)
		require.Equal(t, name, open)
	}
	c := start(t, g, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
	require.Negative(t, c.signal())
	after, err := g.Usage()
	require.NoError(t, err)
	require.Greater(t, after.UserCPU+after.SystemCPU, before.UserCPU+before.SystemCPU)
	g.files = counterFiles{}
	opened, err := g.Usage()
	require.NoError(t, err)
	require.Equal(t, opened, after)
	g.files.kept = kept
	require.NoError(t, g.Delete())
	for name, fd := range kept {
		open, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		require.NotEqual(t, name, open)
	}
	_, err = g.Usage()
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestCreateTwice(t *testing.T) {
	cell := testCell(t, Spec{})
	g, err := cell.Create("run", Spec{})
	require.NoError(t, err)
	_, err = cell.Create("run", Spec{})
	assert.ErrorIs(t, err, fs.ErrExist)
	for _, dir := range g.dirs {
		assert.DirExists(t, dir, "the first one is untouched")
	}
	_, err = cell.Create("cell", Spec{})
	assert.ErrorContains(t, err, "own")

	_, err = cell.tree.NewCell(path.Base(cell.Path()), nil)
	assert.ErrorIs(t, err, fs.ErrExist)
	assert.DirExists(t, g.dirs[0])
}

// TestRequestMove looks at what hasten asks for: the kernel refuses, and no thread of this process
// is moved.
func TestRequestMove(t *testing.T) {
	testkit.Need(t, "cgroup v2")
	cell := testCell(t, Spec{})
	i := slices.IndexFunc(cell.tree.all, func(h hierarchy) bool { return h.v2 })
	require.GreaterOrEqual(t, i, 0)
	places := func() (all []string) {
		tasks, err := filepath.Glob("/proc/self/task/*/cgroup")
		require.NoError(t, err)
		for _, task := range tasks {
			if place, err := os.ReadFile(task); err == nil && !slices.Contains(all, string(place)) {
				all = append(all, string(place))
			}
		}
		return all
	}
	before := places()
	dir := path.Join(cell.tree.all[i].mount, cell.Path())
	err := requestMove(dir)
	var refused *fs.PathError
	require.ErrorAs(t, err, &refused)
	require.NotEqual(t, "open", refused.Op, "the file must be there and take a request: %v", err)
	require.Contains(t, []error{unix.EOPNOTSUPP, unix.EBUSY, unix.EACCES}, refused.Err)
	require.Equal(t, before, places())
	for _, file := range []string{"/cgroup.procs", "/cgroup.threads"} {
		require.Empty(t, readWords(dir+file))
	}
}

func TestCreateRefused(t *testing.T) {
	cell := testCell(t, Spec{PIDs: 1, Memory: mib})
	_, err := cell.Create("run", Spec{PIDs: 1 << 40, Memory: mib})
	assert.ErrorContains(t, err, cell.Path()+"/run/pids.max: invalid argument")
	requireGone(t, cell.Path()+"/run")
}

// TestRemoveDeadTree removes what a killed owner leaves: runs, and libcontainer's own cgroup in
// every hierarchy of the machine, all with processes in them.
func TestRemoveDeadTree(t *testing.T) {
	cell := testCell(t, Spec{})
	g, err := cell.Create("run", Spec{})
	require.NoError(t, err)
	run := start(t, g, "sleep 1000 & sleep 1000")
	population(t, g, 2)
	require.NoError(t, g.Freeze(t.Context()))

	own := &Group{}
	for _, h := range cell.tree.all {
		dir := path.Join(h.mount, cell.Path(), "cell")
		require.NoError(t, mkdir(dir))
		if len(h.v1) > 0 && h.v1[0] == "cpuset" {
			for _, file := range []string{"/cpuset.cpus", "/cpuset.mems"} {
				require.NoError(t, writeFile(dir+file, strings.Join(readWords(path.Dir(dir)+file), "")))
			}
		}
		own.dirs = append(own.dirs, dir)
	}
	boot := start(t, own, "sleep 1000 & sleep 1000")
	population(t, own, 2)

	require.NoError(t, Remove(cell.Path()))
	requireGone(t, cell.Path())
	assert.Equal(t, unix.SIGKILL, run.signal())
	assert.Equal(t, unix.SIGKILL, boot.signal())
	require.NoError(t, Remove(cell.Path()), "missing is fine")
}

func TestOwnTop(t *testing.T) {
	testkit.Need(t, "root")
	tree, err := Discover("")
	require.NoError(t, err)
	if findManager() != nil {
		assert.NotNil(t, tree.manager, "systemd makes scopes")
		return
	}
	assert.Equal(t, "/sandbox", tree.parent)
	a, err := tree.NewCell("limits-a", nil)
	require.NoError(t, err)
	defer func() { assert.NoError(t, a.Delete()) }()
	b, err := tree.NewCell("limits-b", nil)
	require.NoError(t, err)
	require.NoError(t, b.Delete())
	assert.DirExists(t, path.Join(tree.all[0].mount, a.Path()), "the other cell stays")
	require.NoError(t, Remove(a.Path()))
	requireGone(t, a.Path())
}

// TestRaceForTheTop has owners come and go, each of which removes the directory that all share when
// it looks empty.
func TestRaceForTheTop(t *testing.T) {
	testkit.Need(t, "root")
	done := make(chan error, 4)
	for _, name := range []string{"a", "b", "c", "d"} {
		go func() {
			done <- func() error {
				for range 60 {
					tree, err := Discover(testParent + "/sandbox")
					if err == nil {
						err = tree.Missing(Spec{PIDs: 1}) // though others enable controllers only now
					}
					if err != nil {
						return err
					}
					cell, err := tree.NewCell(name, nil)
					if err != nil {
						return err
					}
					if err := cell.Delete(); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range 4 {
		assert.NoError(t, <-done)
	}
	_ = Remove(testParent + "/sandbox") // the last to make a directory may not be the last to use it
	_ = Remove(testParent)
}

func TestUnavailable(t *testing.T) {
	testkit.Need(t, "root")
	cmd := testkit.HelperCommand(t.Context(), "discover")
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "true cgroups can't be used: uid 65534 may not make cgroups")
	assert.Contains(t, string(out), "run as root")
	assert.Contains(t, string(out), "WithCgroupParent")
	assert.Contains(t, writable("/nowhere"), "/nowhere: no such file")
}

// TestOccupied has a parent with a process in it, which can't give its children controllers on v2.
func TestOccupied(t *testing.T) {
	cell := testCell(t, Spec{})
	g, err := cell.Create("run", Spec{})
	require.NoError(t, err)
	start(t, g, "sleep 1000")
	tree, err := Discover(g.Path())
	if g.v2 == "" {
		require.NoError(t, err)
		return
	}
	require.NoError(t, err)
	assert.ErrorContains(t, tree.Missing(Spec{PIDs: 1}), "WithPIDs: "+g.v2+" has processes of its own")
	below, err := tree.NewCell("below", nil)
	require.NoError(t, err)
	defer func() { assert.NoError(t, below.Delete()) }()
	_, err = below.Create("run", Spec{PIDs: 1})
	assert.ErrorContains(t, err, "sandbox.DelegateSubgroup")
	assert.Contains(t, below.Uncounted(), "PIDsPeak")
	free, err := below.Create("run", Spec{}) // what needs no controller works
	require.NoError(t, err)
	p := start(t, free, "sleep 1000")
	require.NoError(t, free.Freeze(t.Context()))
	require.NoError(t, free.Kill())
	assert.Equal(t, unix.SIGKILL, p.signal())
	used, err := free.CPU()
	require.NoError(t, err)
	assert.Positive(t, used)
}

// TestNotYetEnabled has a parent that another has just made: it gets its controllers from above.
func TestNotYetEnabled(t *testing.T) {
	cell := testCell(t, Spec{})
	g, err := cell.Create("run", Spec{})
	require.NoError(t, err)
	if g.v2 == "" {
		return
	}
	require.NoError(t, mkdir(g.v2+"/new"))
	require.Empty(t, readWords(g.v2+"/new/cgroup.controllers"))
	p := start(t, g, "sleep 1000")
	tree, err := Discover(g.Path() + "/new")
	require.NoError(t, err)
	require.ErrorContains(t, tree.Missing(Spec{PIDs: 1}), "does not offer the pids controller", "above is a process")
	require.NoError(t, g.Kill())
	require.Equal(t, unix.SIGKILL, p.signal())
	testkit.Eventually(t, "it has no process any more", func() bool { return occupied(g.v2) == "" })
	tree, err = Discover(g.Path() + "/new")
	require.NoError(t, err)
	require.NoError(t, tree.Missing(Spec{PIDs: 1}))
	below, err := tree.NewCell("below", nil)
	require.NoError(t, err)
	defer func() { assert.NoError(t, below.Delete()) }()
	limited, err := below.Create("run", Spec{PIDs: 7})
	require.NoError(t, err)
	require.Equal(t, []string{"7"}, readWords(limited.v2+"/pids.max"))
}

// discoverIn returns what discover prints as a user without rights in the cgroup.
func discoverIn(dir string, how ...string) ([]byte, error) {
	fd, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	cmd := testkit.HelperCommand(context.Background(), "discover", how...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		UseCgroupFD: true, CgroupFD: int(fd.Fd()),
	}
	return cmd.CombinedOutput()
}

// TestSubgroup has a process make room for cgroups beside its own.
func TestSubgroup(t *testing.T) {
	cell := testCell(t, Spec{PIDs: 1})
	g, err := cell.Create("delegated", Spec{})
	require.NoError(t, err)
	if g.v2 == "" {
		require.NoError(t, Subgroup("main"), "nothing is to be done")
		return
	}
	for _, name := range []string{"", "/cgroup.procs", "/cgroup.subtree_control"} {
		require.NoError(t, os.Chown(g.v2+name, 65534, 65534))
	}
	other := start(t, g, "exec sleep 1000")
	out, err := discoverIn(g.v2, "subgroup")
	require.NoError(t, err)
	assert.Equal(t, g.Path()+"/sandbox pids.max=7\n", string(out))
	moved, err := members(g.v2 + "/main")
	require.NoError(t, err)
	assert.Equal(t, []int{other.Process.Pid}, moved)
}

// TestDelegatedSubtree has a user without rights in a subgroup of a cgroup that the user owns, as
// systemd makes it with Delegate= and DelegateSubgroup=.
func TestDelegatedSubtree(t *testing.T) {
	cell := testCell(t, Spec{PIDs: 1})
	g, err := cell.Create("delegated", Spec{})
	require.NoError(t, err)
	if g.v2 == "" {
		return // v1 is not delegated in this way
	}
	require.NoError(t, mkdir(g.v2+"/main"))
	for _, name := range []string{"", "/cgroup.procs", "/cgroup.subtree_control", "/main", "/main/cgroup.procs"} {
		require.NoError(t, os.Chown(g.v2+name, 65534, 65534))
	}
	out, err := discoverIn(g.v2 + "/main")
	require.NoError(t, err, "%s", out)
	assert.Equal(t, g.Path()+"/sandbox pids.max=7\n", string(out))
}
