//go:build linux

package limits

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/host"
)

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string][]int{
		"": nil, "0": {0}, "0-1,3": {0, 1, 3}, "2,0-1": {0, 1, 2}, "5-5\n": {5}, "8191": {8191},
	} {
		got, err := parseCPUs(list)
		require.NoError(t, err, "%q", list)
		assert.Len(t, got, len(want), "%q", list)
		for _, cpu := range want {
			assert.True(t, got[cpu], "%q: %d", list, cpu)
		}
	}
	for _, list := range []string{"a", "1-0", "-1", "0,", ",", "0--1", "8192", "0-99999999", "0 1", "0\n1"} {
		_, err := parseCPUs(list)
		assert.ErrorContains(t, err, "not a list of CPUs", "%q", list)
	}
}

func FuzzParseCPUs(f *testing.F) {
	f.Add("0-1,3")
	f.Fuzz(func(t *testing.T, list string) {
		if cpus, err := parseCPUs(list); err == nil {
			for cpu := range cpus {
				assert.True(t, cpu >= 0 && cpu < maxCPU)
			}
		}
	})
}

func TestParseFiles(t *testing.T) {
	stat := []byte("usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_throttled 7")
	assert.EqualValues(t, 300, keyed(stat, "usage_usec"))
	assert.EqualValues(t, 7, keyed(stat, "nr_throttled"), "a last line without its end")
	assert.EqualValues(t, 0, keyed(stat, "usage"), "only whole keys")
	assert.EqualValues(t, 0, keyed(nil, "usage"))

	r, w := ioV1([]byte("8:0 Read 4096\n8:0 Write 10\n8:0 Sync 5\n8:0 Total 4106\n8:16 Read 4\nTotal 4110\n"))
	assert.EqualValues(t, 4100, r)
	assert.EqualValues(t, 10, w)

	r, w = ioV2([]byte("8:0 rbytes=4096 wbytes=10 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=4 wbytes=0\n"))
	assert.EqualValues(t, 4100, r)
	assert.EqualValues(t, 10, w)

	pids, hidden := parsePIDs([]byte("12\n7\n"))
	assert.Equal(t, []int{12, 7}, pids)
	assert.False(t, hidden)
	pids, hidden = parsePIDs([]byte("0\n7\n"))
	assert.Equal(t, []int{7}, pids)
	assert.True(t, hidden)
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		user, system         uint64
		wantUser, wantSystem time.Duration
	}{
		{0, 0, 100, 0}, {3, 0, 100, 0}, {0, 3, 0, 100}, {1, 3, 25, 75},
	} {
		u, s := split(100, c.user, c.system)
		assert.Equal(t, [2]time.Duration{c.wantUser, c.wantSystem}, [2]time.Duration{u, s})
	}
}

func TestSharesAndQuota(t *testing.T) {
	for weight, want := range map[uint64]uint64{1: 10, 50: 512, 100: 1024, 200: 2048, 10000: 102400} {
		assert.Equal(t, want, Spec{CPUWeight: weight}.shares(), "weight %d", weight)
	}
	for cpus, want := range map[float64]int64{0.01: 1000, 0.5: 50_000, 1: 100_000, 2.5: 250_000, 1.0 / 3: 33_333} {
		assert.Equal(t, want, Spec{CPUs: cpus}.quota(), "%v CPUs", cpus)
	}
}

func TestSpecCheck(t *testing.T) {
	require.NoError(t, Spec{}.check())
	require.NoError(t, Spec{Memory: 1 << 20, Swap: 1, CPUs: 0.01, CPUWeight: 10000, CPUSet: "0", PIDs: 1}.check())
	for option, s := range map[Option]Spec{
		WithMemory: {Memory: -1}, WithSwap: {Memory: 1 << 62, Swap: 1 << 62}, WithCPUs: {CPUs: 0.001},
		WithCPUWeight: {CPUWeight: 10001}, WithCPUSet: {CPUSet: "x"}, WithPIDs: {PIDs: -1},
	} {
		var wrong *Error
		if assert.ErrorAs(t, s.check(), &wrong) {
			assert.Equal(t, option, wrong.Option)
			assert.EqualError(t, s.check(), string(option)+": "+wrong.Err.Error())
		}
	}
	nan := 0.0
	assert.ErrorContains(t, Spec{CPUs: nan / nan}.check(), "WithCPUs")
	assert.ErrorContains(t, Spec{CPUs: -1}.check(), "WithCPUs")
}

func TestResources(t *testing.T) {
	s := Spec{Memory: 64 << 20, Swap: 1 << 20, CPUs: 0.5, CPUWeight: 200, CPUSet: "0", PIDs: 9}
	r1 := s.resourcesV1(true, true)
	assert.EqualValues(t, 64<<20, *r1.Memory.Limit)
	assert.EqualValues(t, 65<<20, *r1.Memory.Swap, "v1 limits memory and swap together")
	assert.Nil(t, r1.Memory.Swappiness)
	assert.EqualValues(t, 2048, *r1.CPU.Shares)
	assert.EqualValues(t, 50_000, *r1.CPU.Quota)
	assert.Equal(t, "0", r1.CPU.Cpus)
	assert.EqualValues(t, 9, *r1.Pids.Limit)

	r1 = Spec{Memory: 64 << 20}.resourcesV1(false, false)
	assert.Nil(t, r1.Memory.Swap)
	assert.EqualValues(t, 0, *r1.Memory.Swappiness)
	assert.Nil(t, r1.CPU)

	r2 := s.resourcesV2(true)
	assert.EqualValues(t, 64<<20, *r2.Memory.Max)
	assert.EqualValues(t, 1<<20, *r2.Memory.Swap)
	assert.True(t, *r2.Memory.OOMGroup)
	assert.EqualValues(t, "50000 100000", r2.CPU.Max)
	assert.EqualValues(t, 200, *r2.CPU.Weight)
	assert.EqualValues(t, 9, r2.Pids.Max)
	assert.Empty(t, Spec{}.resourcesV2(true).Values(), "nothing asked for, nothing written")
	assert.Nil(t, Spec{Memory: 1}.resourcesV2(false).Memory.Swap)
}

func info(dev int, fstype, point, root, options string) *mountinfo.Info {
	return &mountinfo.Info{Minor: dev, FSType: fstype, Mountpoint: point, Root: root, VFSOptions: options}
}

func TestHierarchies(t *testing.T) {
	v1 := []*mountinfo.Info{
		info(1, "cgroup", "/sys/fs/cgroup/cpu,cpuacct", "/", "rw,cpu,cpuacct"),
		info(2, "cgroup", "/sys/fs/cgroup/systemd", "/", "rw,xattr,name=systemd"),
		info(3, "cgroup", "/elsewhere/memory", "/part", "rw,memory"),
		info(3, "cgroup", "/sys/fs/cgroup/memory", "/", "rw,memory"),
		info(3, "cgroup", "/mnt/memory", "/", "rw,memory"),
	}
	v2 := info(9, "cgroup2", "/sys/fs/cgroup/unified", "/", "rw,nsdelegate")

	all := hierarchies(v1)
	require.Len(t, all, 3)
	assert.Equal(t, hierarchy{"/sys/fs/cgroup/cpu,cpuacct", "/", []string{"cpu", "cpuacct"}, false, []string{"cpu", "cpuacct"}}, all[0])
	assert.Empty(t, all[1].v1)
	assert.Equal(t, "/sys/fs/cgroup/memory", all[2].mount, "the usual place wins")
	assert.Equal(t, "v1", version(all))
	assert.Equal(t, "hybrid", version(hierarchies(append(slices.Clone(v1), v2))))
	assert.Equal(t, "v2", version(hierarchies([]*mountinfo.Info{v2})))
	assert.Equal(t, "v2", version(hierarchies([]*mountinfo.Info{v2, info(7, "cgroup", "/vpn", "/", "rw,net_cls")})), "a stray v1 mount")
	assert.Equal(t, "", version(nil))

	hidden := hierarchies([]*mountinfo.Info{info(1, "cgroup", "/c", "/", "rw,pids"), info(2, "cgroup2", "/c", "/", "rw")})
	require.Len(t, hidden, 1)
	assert.True(t, hidden[0].v2, "the later mount hides the earlier one")
}

func TestView(t *testing.T) {
	all := hierarchies([]*mountinfo.Info{
		info(1, "cgroup", "/sys/fs/cgroup/cpu,cpuacct", "/", "rw,cpu,cpuacct"),
		info(2, "cgroup", "/sys/fs/cgroup/systemd", "/", "rw,xattr,name=systemd"),
		info(3, "cgroup", "/sys/fs/cgroup/memory", "/", "rw,seclabel,xattr,memory,release_agent=/x"),
		info(4, "cgroup", "/sys/fs/cgroup/cpuset", "/", "rw,cpuset,noprefix,clone_children"),
		info(5, "cgroup", "/sys/fs/cgroup/pids", "/", "rw,pids"),
		info(9, "cgroup2", "/sys/fs/cgroup/unified", "/", "rw,nsdelegate"),
	})
	cpu := host.Hierarchy{Type: "cgroup", Name: "cpu,cpuacct", Options: "cpu,cpuacct"}
	memory := host.Hierarchy{Type: "cgroup", Name: "memory", Options: "xattr,memory"}
	cpuset := host.Hierarchy{Type: "cgroup", Name: "cpuset", Options: "cpuset,noprefix"}
	c := &Cell{tree: &Tree{all: all, v1: map[string]string{"memory": "/m", "cpu": "/c", "cpuacct": "/c", "pids": "/p"}}, home: map[string]bool{}}
	assert.Equal(t, host.View{cpu, memory, cpuset}, c.Views())
	assert.Equal(t, []string{"cpu", "cpuacct"}, cpu.Links())
	assert.Empty(t, memory.Links())
	assert.Zero(t, c.View(Spec{PIDs: 1}), "nothing that programs look for there")
	assert.Equal(t, host.View{cpu, memory}, c.View(Spec{Memory: 1}), "cpuset can't be used")
	c.tree.v1["cpuset"] = "/s"
	assert.Equal(t, host.View{cpu, memory}, c.View(Spec{Memory: 1}), "it is nobody's own")
	c.home["cpuset"] = true
	assert.Equal(t, host.View{cpu, memory, cpuset}, c.View(Spec{CPUs: 1}))

	c = &Cell{tree: &Tree{v2: "/sys/fs/cgroup", all: all[5:]}}
	assert.Equal(t, host.View{{Type: "cgroup2"}}, c.Views())
	assert.Equal(t, host.View{{Type: "cgroup2"}}, c.View(Spec{PIDs: 1}))
	assert.Zero(t, c.View(Spec{}))
}

func TestMissingNamesOptionAndRemedy(t *testing.T) {
	everything := Spec{Memory: 1 << 20, Swap: 1, CPUs: 1, CPUWeight: 1, CPUSet: "0", PIDs: 1}
	tree := &Tree{missing: map[string]string{}}
	for _, c := range used {
		tree.missing[c] = "no " + c + "; do this"
	}
	err := tree.Missing(everything)
	for option, controller := range map[Option]string{
		WithMemory: "memory", WithSwap: "memory", WithCPUs: "cpu", WithCPUWeight: "cpu", WithCPUSet: "cpuset", WithPIDs: "pids",
	} {
		assert.ErrorContains(t, err, string(option)+": no "+controller+"; do this")
	}
	assert.NoError(t, tree.Missing(Spec{}), "nothing asked for, nothing missing")
	assert.ErrorContains(t, tree.MissingCPUTime(), "WithCPUTime: no cpuacct")
	assert.ErrorContains(t, tree.MissingFreeze(), "Pause: no freezer")

	// A controller without its swap and quota files, mounted where containerd can't find it.
	dir := t.TempDir()
	tree = &Tree{v1: map[string]string{"memory": dir + "/memory", "cpu": dir + "/cpu", "pids": dir + "/odd"}}
	err = tree.Missing(Spec{Memory: 1, Swap: 1, CPUs: 1, PIDs: 1})
	assert.ErrorContains(t, err, "WithSwap: the kernel does not account swap")
	assert.ErrorContains(t, err, "WithCPUs: the kernel has no CPU quota")
	assert.ErrorContains(t, err, "WithPIDs: the pids controller is mounted at "+dir+"/odd; link it")
	assert.NotContains(t, err.Error(), "WithMemory")
}

func TestBadNames(t *testing.T) {
	for _, parent := range []string{"jobs", "/jobs/", "/../x", "/sys/fs/cgroup/jobs"} {
		_, err := Discover(parent)
		assert.ErrorContains(t, err, "WithCgroupParent", parent)
		assert.False(t, errors.Is(err, ErrUnavailable))
	}
	tree := &Tree{}
	for _, id := range []string{"", "..", "a/b", "memory.max", "a\nb"} {
		_, err := tree.NewCell(id, nil)
		assert.ErrorContains(t, err, "must be a file name", "%q", id)
	}
	for _, p := range []string{"", "/", "x", "/a/../b"} {
		assert.ErrorContains(t, Remove(p), "must be an absolute, clean path", "%q", p)
	}
}
