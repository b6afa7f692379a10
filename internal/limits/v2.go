//go:build linux

package limits

import (
	"fmt"
	"path"
	"sync/atomic"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
)

// createV2 makes a run's directory, which has every controller that the cell enabled.
func (c *Cell) createV2(name string, s Spec) (*Group, error) {
	for _, n := range s.needs() {
		if err := c.enable(path.Join(c.path, s.Pool), n.controller); err != nil {
			return nil, n.option.wrong("the %s controller can't be enabled for runs: %w", n.controller, err)
		}
	}
	p := path.Join(c.path, s.Pool, name)
	dir := path.Join(c.tree.v2, p)
	g := &Group{path: p, dirs: []string{dir}, v2: dir, freezer: freezer{dir, true}}
	g.counters = &countersV2{counterFiles: &g.files, dir: dir}
	if err := mkdir(dir); err != nil {
		return nil, err
	}
	if err := c.limitV2(p, s); err != nil {
		_ = g.Delete()
		return nil, fmt.Errorf("cgroup %s: %w", p, err)
	}
	return g, nil
}

// limitV2 uses containerd/cgroups to write the settings. It calls Manager.Update because NewManager
// and NewChild enable the controllers again in every directory from the root down; once per cell is
// enough.
func (c *Cell) limitV2(p string, s Spec) error { return c.updateV2(p, s.resourcesV2(c.swap)) }

func (c *Cell) updateV2(p string, r *cgroup2.Resources) error {
	m, err := cgroup2.Load(p, cgroup2.WithMountpoint(c.tree.v2))
	if err != nil {
		return err
	}
	return m.Update(r)
}

// resourcesV2 converts s. swap is false on kernels without swap accounting. Without WithSwap
// nothing is said about swap to these: the memory limit holds, though the machine may swap.
func (s Spec) resourcesV2(swap bool) *cgroup2.Resources {
	r := &cgroup2.Resources{}
	if s.Memory > 0 {
		// A run that lost a single process would go on in a broken state: the kernel is to
		// end all of it.
		group := true
		r.Memory = &cgroup2.Memory{Max: &s.Memory, OOMGroup: &group}
		if swap {
			r.Memory.Swap = &s.Swap
		}
	}
	if s.PIDs > 0 {
		r.Pids = &cgroup2.Pids{Max: s.PIDs}
	}
	if s.CPUs != 0 || s.CPUWeight != 0 || s.CPUSet != "" {
		r.CPU = &cgroup2.CPU{Cpus: s.CPUSet}
	}
	if s.CPUs != 0 {
		quota, period := s.quota(), uint64(cpuPeriod)
		r.CPU.Max = cgroup2.NewCPUMax(&quota, &period)
	}
	if s.CPUWeight != 0 {
		r.CPU.Weight = &s.CPUWeight
	}
	if len(s.IO) > 0 {
		r.IO = &cgroup2.IO{}
		for _, d := range s.IO {
			r.IO.Max = append(r.IO.Max, d.maxV2()...)
		}
	}
	return r
}

// maxV2 returns the lines of io.max that limit the device.
func (d IO) maxV2() (lines []cgroup2.Entry) {
	for _, e := range []cgroup2.Entry{
		{Type: cgroup2.ReadBPS, Rate: d.ReadBytes}, {Type: cgroup2.WriteBPS, Rate: d.WriteBytes},
		{Type: cgroup2.ReadIOPS, Rate: d.ReadOps}, {Type: cgroup2.WriteIOPS, Rate: d.WriteOps},
	} {
		if e.Rate > 0 {
			e.Major, e.Minor = d.Major, d.Minor
			lines = append(lines, e)
		}
	}
	return lines
}

type countersV2 struct {
	*counterFiles
	dir  string
	peak atomic.Uint64 // of the samples, if there is no memory.peak
}

// usage leaves out what has no file, because its controller is not enabled or the kernel is too
// old.
func (c *countersV2) usage() (u Usage, err error) {
	var buf [4096]byte
	stat, err := c.read(c.dir+"/cpu.stat", buf[:]) // always there
	if err != nil {
		return u, err
	}
	u.UserCPU = time.Duration(keyed(stat, "user_usec")) * time.Microsecond
	u.SystemCPU = time.Duration(keyed(stat, "system_usec")) * time.Microsecond
	u.Throttled = time.Duration(keyed(stat, "throttled_usec")) * time.Microsecond
	if u.MemoryPeak, err = c.memoryPeak(); err != nil {
		return u, err
	}
	if u.OOMKills, err = c.oomKills(); err != nil {
		return u, err
	}
	if u.PIDsPeak, err = c.readUint(c.dir + "/pids.peak"); err != nil && !gone(err) {
		return u, err
	}
	events, err := c.read(c.dir+"/pids.events", buf[:])
	if err != nil && !gone(err) {
		return u, err
	}
	u.PIDsRefused = keyed(events, "max")
	io, err := c.read(c.dir+"/io.stat", buf[:])
	if err != nil && !gone(err) {
		return u, err
	}
	u.ReadBytes, u.WriteBytes = ioV2(io)
	return u, nil
}

func (c *countersV2) memoryPeak() (uint64, error) {
	peak, err := c.readUint(c.dir + "/memory.peak") // since Linux 5.19
	if err == nil || !gone(err) {
		return peak, err
	}
	now, err := c.readUint(c.dir + "/memory.current")
	if err != nil && !gone(err) {
		return 0, err
	}
	for {
		old := c.peak.Load()
		if now <= old || c.peak.CompareAndSwap(old, now) {
			return max(now, old), nil
		}
	}
}

func (c *countersV2) oomKills() (uint64, error) {
	var buf [256]byte
	data, err := c.read(c.dir+"/memory.events", buf[:])
	if gone(err) {
		return 0, nil
	}
	return keyed(data, "oom_kill"), err
}

func (c *countersV2) cpu() (time.Duration, error) {
	var buf [1024]byte
	data, err := c.read(c.dir+"/cpu.stat", buf[:])
	return time.Duration(keyed(data, "usage_usec")) * time.Microsecond, err
}
