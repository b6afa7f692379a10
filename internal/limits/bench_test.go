//go:build linux

package limits

import (
	"fmt"
	"os/exec"
	"path"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/stretchr/testify/require"
)

var benchSpec = Spec{Memory: 256 * mib, CPUs: 1, PIDs: 64}

// steps times the parts of one run's life and reports each per run.
type steps struct {
	b     *testing.B
	names []string
	spent map[string]time.Duration
}

func (s *steps) do(name string, f func() error) {
	begin := time.Now()
	err := f()
	if s.spent == nil {
		s.spent = map[string]time.Duration{}
	}
	if _, ok := s.spent[name]; !ok {
		s.names = append(s.names, name)
	}
	s.spent[name] += time.Since(begin)
	require.NoError(s.b, err, name)
}

func (s *steps) report() {
	for _, name := range s.names {
		s.b.ReportMetric(float64(s.spent[name].Microseconds())/float64(s.b.N), name+"-µs")
	}
}

// sleeper is a process to be moved. The time of its start and end does not count.
func sleeper(b *testing.B) (pid int, end func()) {
	cmd := exec.Command("sleep", "1000")
	require.NoError(b, cmd.Start())
	return cmd.Process.Pid, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// BenchmarkRun measures the cost of a run's cgroup.
func BenchmarkRun(b *testing.B) {
	cell := testCell(b, benchSpec)
	s := &steps{b: b}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		pid, end := sleeper(b)
		b.StartTimer()
		var g *Group
		s.do("create", func() (err error) { g, err = cell.Create("run", benchSpec); return err })
		s.do("add", func() error { return g.Add(pid) })
		s.do("cpu", func() error { _, err := g.CPU(); return err })
		b.StopTimer()
		end()
		b.StartTimer()
		s.do("usage", func() error { _, err := g.Usage(); return err })
		s.do("delete", func() error { return g.Delete() })
	}
	s.report()
}

// BenchmarkContainerd measures the same with containerd/cgroups alone, which is why Create, Add,
// Usage and Delete do without it.
func BenchmarkContainerd(b *testing.B) {
	cell := testCell(b, benchSpec)
	s := &steps{b: b}
	for b.Loop() {
		b.StopTimer()
		pid, end := sleeper(b)
		b.StartTimer()
		if cell.tree.v2 != "" {
			runContainerdV2(s, cell, pid, func() { b.StopTimer(); end(); b.StartTimer() })
		} else {
			runContainerdV1(s, cell, pid, func() { b.StopTimer(); end(); b.StartTimer() })
		}
	}
	s.report()
}

func runContainerdV1(s *steps, cell *Cell, pid int, end func()) {
	root := func(c string) string { return path.Dir(cell.tree.v1[c]) }
	var g cgroup1.Cgroup
	s.do("create", func() (err error) {
		g, err = cgroup1.New(cgroup1.StaticPath(cell.path+"/lib"), benchSpec.resourcesV1(cell.swap, cell.sockets), cgroup1.WithHierarchy(
			func() ([]cgroup1.Subsystem, error) {
				return []cgroup1.Subsystem{cgroup1.NewMemory(root("memory"), cgroup1.OptionalSwap()), cgroup1.NewPids(root("pids")),
					cgroup1.NewCpuacct(root("cpuacct")), cgroup1.NewFreezer(root("freezer")), cgroup1.NewBlkio(root("blkio")), cgroup1.NewCpu(root("cpu"))}, nil
			}))
		return err
	})
	s.do("add", func() error { return g.AddProc(uint64(pid)) })
	end()
	s.do("usage", func() error { _, err := g.Stat(); return err })
	s.do("delete", g.Delete)
}

func runContainerdV2(s *steps, cell *Cell, pid int, end func()) {
	var g *cgroup2.Manager
	s.do("create", func() (err error) {
		g, err = cgroup2.NewManager(cell.tree.v2, cell.path+"/lib", benchSpec.resourcesV2(cell.swap))
		return err
	})
	s.do("add", func() error { return g.AddProc(uint64(pid)) })
	end()
	s.do("usage", func() error { _, err := g.Stat(); return err })
	s.do("delete", g.Delete)
}

// BenchmarkHierarchies measures what one more v1 hierarchy costs a run.
func BenchmarkHierarchies(b *testing.B) {
	cell := testCell(b, Spec{})
	for _, controller := range used {
		mount := cell.tree.v1[controller]
		if mount == "" {
			continue
		}
		b.Run(controller, func(b *testing.B) {
			s := &steps{b: b}
			dir := path.Join(mount, cell.path, "one")
			for b.Loop() {
				b.StopTimer()
				pid, end := sleeper(b)
				b.StartTimer()
				s.do("mkdir", func() error { return mkdir(dir) })
				if controller != "cpuset" {
					s.do("join", func() error { return writeFile(dir+"/cgroup.procs", strconv.Itoa(pid)) })
				}
				b.StopTimer()
				end()
				b.StartTimer()
				s.do("rmdir", func() error { return removeDirs(func() []string { return []string{dir} }, nil) })
			}
			s.report()
		})
	}
}

// BenchmarkUsage reads the counters of a new group, as for a run.
func BenchmarkUsage(b *testing.B) {
	for _, kept := range []bool{false, true} {
		b.Run(fmt.Sprintf("kept=%v", kept), func(b *testing.B) {
			cell := testCell(b, Spec{})
			for b.Loop() {
				b.StopTimer()
				g, err := cell.Create("run", Spec{})
				require.NoError(b, err)
				if kept {
					g.Keep()
				}
				b.StartTimer()
				_, err = g.Usage()
				b.StopTimer()
				require.NoError(b, err)
				require.NoError(b, g.Delete())
				b.StartTimer()
			}
		})
	}
}
