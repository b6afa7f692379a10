//go:build linux

package limits

import (
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/host"
)

// createV1 makes a run's directory in the hierarchies that the run needs. Each costs 0.1 to 0.2 ms
// to make, join and remove, so cpu and cpuset are left out unless they limit something.
func (c *Cell) createV1(name string, s Spec) (*Group, error) {
	p := path.Join(c.path, s.Pool, name)
	g := &Group{path: p, dirs: c.tree.dirs(p, c.controllersV1(s)...)}
	dir := func(controller string, use bool) string {
		if mount := c.tree.v1[controller]; mount != "" && use {
			return path.Join(mount, p)
		}
		return ""
	}
	g.freezer.dir = dir("freezer", true)
	g.counters = &countersV1{
		counterFiles: &g.files,
		memory:       dir("memory", true), pids: dir("pids", true), cpuacct: dir("cpuacct", true),
		// Update may set a quota.
		blkio: dir("blkio", true), quota: dir("cpu", slices.Contains(g.dirs, path.Join(c.tree.v1["cpu"], p))),
	}
	for i, d := range g.dirs {
		if err := mkdir(d); err != nil {
			for _, made := range g.dirs[:i] {
				_ = unix.Rmdir(made)
			}
			return nil, err
		}
	}
	if s.CPUSet == "" && slices.Contains(c.controllersV1(s), "cpuset") {
		c.fillCPUSet(p) // so that View shows it
	}
	if err := c.limitV1(p, s); err != nil {
		_ = g.Delete()
		return nil, fmt.Errorf("cgroup %s: %w", p, err)
	}
	return g, nil
}

func (c *Cell) controllersV1(s Spec) []string {
	controllers := []string{"memory", "pids", "cpuacct", "freezer", "blkio"}
	if s.CPUs != 0 || s.CPUWeight != 0 || s.Pool != "" { // limits of CPUs are possible
		controllers = append(controllers, "cpu")
	}
	if s.CPUSet != "" {
		controllers = append(controllers, "cpuset")
	}
	for _, name := range host.Viewed {
		if c.seen(s) && !c.home[name] && !slices.Contains(controllers, name) && c.tree.v1[name] != "" && c.fillable(name) {
			controllers = append(controllers, name)
		}
	}
	return controllers
}

// limitV1 uses containerd/cgroups to write the settings into the existing directories. It also
// fills an empty cpuset from the parent's, without which no process could join.
func (c *Cell) limitV1(p string, s Spec) error {
	var subsystems []cgroup1.Subsystem
	for _, n := range s.needs() {
		controller := nameV1(n.controller)
		root, ok := containerdRoot(c.tree.v1[controller], controller)
		if !ok {
			return c.tree.lacksDetail(n, s)
		}
		switch n.option { // WithSwap and WithCPUWeight share a controller with another
		case WithMemory:
			subsystems = append(subsystems, cgroup1.NewMemory(root))
		case WithPIDs:
			subsystems = append(subsystems, cgroup1.NewPids(root))
		case WithCPUSet:
			subsystems = append(subsystems, cgroup1.NewCpuset(root))
		case WithIO:
			subsystems = append(subsystems, cgroup1.NewBlkio(root))
		case WithCPUs:
			subsystems = append(subsystems, cgroup1.NewCpu(root))
		case WithCPUWeight:
			if s.CPUs == 0 {
				subsystems = append(subsystems, cgroup1.NewCpu(root))
			}
		}
	}
	if len(subsystems) == 0 {
		return nil
	}
	_, err := cgroup1.New(cgroup1.StaticPath(p), s.resourcesV1(c.swap, c.sockets), cgroup1.WithHierarchy(
		func() ([]cgroup1.Subsystem, error) { return subsystems, nil }))
	return err
}

// resourcesV1 converts s. Where v1 accounts swap, it limits memory and swap together. Where it does
// not, "no swap" is a swappiness of 0, with which the reclaim of the limit leaves anonymous memory
// alone. The buffers of sockets have a limit of their own on v1, which is set to the same value if
// there is one.
func (s Spec) resourcesV1(swap, sockets bool) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if s.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &s.Memory}
		if sockets {
			r.Memory.KernelTCP = &s.Memory
		}
		if total := s.Memory + s.Swap; swap {
			r.Memory.Swap = &total
		} else {
			r.Memory.Swappiness = new(uint64)
		}
	}
	if s.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: &s.PIDs}
	}
	if s.CPUs != 0 || s.CPUWeight != 0 || s.CPUSet != "" {
		r.CPU = &specs.LinuxCPU{Cpus: s.CPUSet}
	}
	if s.CPUs != 0 {
		quota := s.quota() // per period of a new group, which is cpuPeriod
		r.CPU.Quota = &quota
	}
	if s.CPUWeight != 0 {
		shares := s.shares()
		r.CPU.Shares = &shares
	}
	r.BlockIO = s.blockIO()
	return r
}

// blockIO converts IO. It returns nil if there is none.
func (s Spec) blockIO() *specs.LinuxBlockIO {
	if len(s.IO) == 0 {
		return nil
	}
	b := &specs.LinuxBlockIO{}
	for _, d := range s.IO {
		add := func(list *[]specs.LinuxThrottleDevice, rate uint64) {
			if rate > 0 {
				t := specs.LinuxThrottleDevice{Rate: rate}
				t.Major, t.Minor = d.Major, d.Minor
				*list = append(*list, t)
			}
		}
		add(&b.ThrottleReadBpsDevice, d.ReadBytes)
		add(&b.ThrottleWriteBpsDevice, d.WriteBytes)
		add(&b.ThrottleReadIOPSDevice, d.ReadOps)
		add(&b.ThrottleWriteIOPSDevice, d.WriteOps)
	}
	return b
}

// countersV1 holds the run's directory in each hierarchy, or "" where it has none.
type countersV1 struct {
	*counterFiles
	memory, pids, cpuacct, quota, blkio string
}

func (c *countersV1) usage() (u Usage, err error) {
	var buf [4096]byte
	read := func(dir, file string) (data []byte) {
		if dir != "" && err == nil {
			data, err = c.read(dir+file, buf[:])
		}
		return data
	}
	var total time.Duration
	if c.cpuacct != "" {
		if total, err = c.cpu(); err != nil {
			return u, err
		}
		stat := read(c.cpuacct, "/cpuacct.stat")
		u.UserCPU, u.SystemCPU = split(total, keyed(stat, "user"), keyed(stat, "system"))
	}
	u.Throttled = time.Duration(keyed(read(c.quota, "/cpu.stat"), "throttled_time"))
	u.ReadBytes, u.WriteBytes = ioV1(read(c.blkio, "/blkio.throttle.io_service_bytes"))
	u.OOMKills = keyed(read(c.memory, "/memory.oom_control"), "oom_kill")
	if err == nil && c.memory != "" {
		u.MemoryPeak, err = c.readUint(c.memory + "/memory.max_usage_in_bytes")
	}
	if err == nil && c.pids != "" {
		u.PIDsPeak, err = c.readUint(c.pids + "/pids.peak")
		if gone(err) {
			err = nil // an older kernel
		}
	}
	u.PIDsRefused = keyed(read(c.pids, "/pids.events"), "max")
	return u, err
}

func (c *countersV1) oomKills() (uint64, error) {
	if c.memory == "" {
		return 0, nil
	}
	var buf [128]byte
	data, err := c.read(c.memory+"/memory.oom_control", buf[:])
	return keyed(data, "oom_kill"), err
}

func (c *countersV1) cpu() (time.Duration, error) {
	if c.cpuacct == "" {
		return 0, WithCPUTime.wrong("the v1 cpuacct controller is not mounted")
	}
	ns, err := c.readUint(c.cpuacct + "/cpuacct.usage")
	return time.Duration(ns), err
}

// split divides an exact total by user and system ticks of 10 ms, as the kernel does for v2's
// cpu.stat: without system ticks all of it is user time.
func split(total time.Duration, user, system uint64) (time.Duration, time.Duration) {
	if system == 0 {
		return total, 0
	}
	s := time.Duration(float64(total) * float64(system) / float64(user+system))
	return total - s, s
}
