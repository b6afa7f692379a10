//go:build linux

package limits

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// setting is a file of a cgroup with what it has to contain.
type setting struct {
	option           Option
	controller, file string
	value            string
	// What the value begins with, if the file has a line for each device.
	device            string
	memory, unlimited bool // a limit of memory; of nothing
}

// Update changes the limits of a live group from those that it has: all of them, or, if one can't
// be set, none. Where to has IO, it has all devices that from has. Processes of the group are not
// killed for a limit of memory that is less than what they use: that is refused.
func (c *Cell) Update(g *Group, from, to Spec) error {
	if err := to.check(); err != nil {
		return err
	}
	old, want := c.settings(from, to.IO), c.settings(to, to.IO)
	// On v1 the limit of memory and swap together is never below that of memory.
	if n := len(want) - 1; c.tree.v2 == "" && c.swap && from.Memory != 0 && (to.Memory == 0 || to.Memory+to.Swap > from.Memory+from.Swap) {
		old[n], old[n-1] = old[n-1], old[n]
		want[n], want[n-1] = want[n-1], want[n]
	}
	for i, s := range want {
		switch {
		case s == old[i]:
			continue
		case c.tree.v2 != "":
			if err := c.enable(path.Dir(g.path), s.controller); err != nil {
				return s.option.wrong("the %s controller can't be enabled for runs: %w", s.controller, err)
			}
		case !slices.Contains(g.dirs, path.Dir(c.fileOf(g, s))):
			return s.option.wrong("the run was started without a limit for the v1 %s controller, and has no cgroup there; start it with one, such as its default", s.controller)
		}
	}
	for i, s := range want {
		if s == old[i] {
			continue
		}
		if err := c.set(g, s); err != nil {
			for n := i - 1; n >= 0; n-- {
				if want[n] != old[n] {
					err = errors.Join(err, c.set(g, old[n]))
				}
			}
			return err
		}
	}
	return nil
}

// settings returns the files of s, the same ones for every s with the same devices. Memory comes
// last, as that is what the kernel refuses to a run that is well otherwise.
func (c *Cell) settings(s Spec, devices []IO) []setting {
	if c.tree.v2 != "" {
		return s.settingsV2(devices, c.swap)
	}
	return s.settingsV1(devices, c.swap, c.sockets)
}

func (s Spec) settingsV1(devices []IO, swap, sockets bool) []setting {
	list := []setting{
		{option: WithCPUSet, controller: "cpuset", file: "cpuset.cpus", value: s.CPUSet},
		{option: WithCPUs, controller: "cpu", file: "cpu.cfs_quota_us", value: orNone(s.quota(), "-1")},
		{option: WithCPUWeight, controller: "cpu", file: "cpu.shares", value: fmt.Sprint(Spec{CPUWeight: cmp.Or(s.CPUWeight, defaultWeight)}.shares())},
		{option: WithPIDs, controller: "pids", file: "pids.max", value: orNone(s.PIDs, "max")},
	}
	for _, d := range devices {
		have := s.limitOf(d)
		for _, f := range []struct {
			file string
			rate uint64
		}{{"read_bps", have.ReadBytes}, {"write_bps", have.WriteBytes}, {"read_iops", have.ReadOps}, {"write_iops", have.WriteOps}} {
			list = append(list, setting{option: WithIO, controller: "blkio", file: "blkio.throttle." + f.file + "_device",
				// A rate of 0 is none.
				device: d.name(), value: strconv.FormatUint(f.rate, 10)})
		}
	}
	memory := func(option Option, file string, bytes int64) {
		list = append(list, setting{option: option, controller: "memory", file: file, value: orNone(bytes, "-1"), memory: true, unlimited: bytes == 0})
	}
	if sockets {
		memory(WithMemory, "memory.kmem.tcp.limit_in_bytes", s.Memory)
	}
	if !swap { // as resourcesV1 says
		none := setting{option: WithMemory, controller: "memory", file: "memory.swappiness"}
		if s.Memory != 0 {
			none.value = "0"
		}
		list = append(list, none)
	}
	memory(WithMemory, "memory.limit_in_bytes", s.Memory)
	switch {
	case swap && s.Memory == 0:
		memory(WithSwap, "memory.memsw.limit_in_bytes", 0)
	case swap:
		memory(WithSwap, "memory.memsw.limit_in_bytes", s.Memory+s.Swap)
	}
	return list
}

func (s Spec) settingsV2(devices []IO, swap bool) []setting {
	list := []setting{
		{option: WithCPUSet, controller: "cpuset", file: "cpuset.cpus", value: s.CPUSet},
		{option: WithCPUs, controller: "cpu", file: "cpu.max", value: orNone(s.quota(), "max") + fmt.Sprintf(" %d", cpuPeriod)},
		{option: WithCPUWeight, controller: "cpu", file: "cpu.weight", value: fmt.Sprint(cmp.Or(s.CPUWeight, defaultWeight))},
		{option: WithPIDs, controller: "pids", file: "pids.max", value: orNone(s.PIDs, "max")},
	}
	for _, d := range devices {
		have := s.limitOf(d)
		rate := func(n uint64) string { return orNone(n, "max") }
		list = append(list, setting{option: WithIO, controller: "io", file: "io.max", device: d.name(),
			value: fmt.Sprintf("rbps=%s wbps=%s riops=%s wiops=%s", rate(have.ReadBytes), rate(have.WriteBytes), rate(have.ReadOps), rate(have.WriteOps))})
	}
	group := "0"
	if s.Memory != 0 {
		group = "1" // as resourcesV2 says
	}
	list = append(list, setting{option: WithMemory, controller: "memory", file: "memory.oom.group", value: group})
	if swap {
		value := "max"
		if s.Memory != 0 {
			value = strconv.FormatInt(s.Swap, 10)
		}
		list = append(list, setting{option: WithSwap, controller: "memory", file: "memory.swap.max", value: value})
	}
	return append(list, setting{option: WithMemory, controller: "memory", file: "memory.max", value: orNone(s.Memory, "max"), memory: true, unlimited: s.Memory == 0})
}

const defaultWeight = 100 // of v2; Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files"

func orNone[N int64 | uint64](n N, none string) string {
	if n == 0 {
		return none
	}
	return fmt.Sprint(n)
}

// limitOf returns what s says of the device of d, which may be nothing.
func (s Spec) limitOf(d IO) IO {
	for _, have := range s.IO {
		if have.name() == d.name() {
			return have
		}
	}
	return IO{Major: d.Major, Minor: d.Minor}
}

func (d IO) name() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// fileOf returns the file's name in the group.
func (c *Cell) fileOf(g *Group, s setting) string {
	if c.tree.v2 != "" {
		return path.Join(g.v2, s.file)
	}
	return path.Join(c.tree.v1[s.controller], g.path, s.file)
}

func (c *Cell) set(g *Group, s setting) error {
	name, value := c.fileOf(g, s), s.value
	switch {
	case s.device != "":
		value = s.device + " " + value
	case value == "" && c.tree.v2 == "": // as the cgroup above
		data, err := readFile(path.Join(path.Dir(path.Dir(name)), s.file), nil)
		if err != nil {
			return err
		}
		value = string(data)
	case value == "":
		value = "\n" // v2: as the cgroup above
	case s.memory && !s.unlimited && c.tree.v2 != "":
		done, err := makeRoom(g.v2, s)
		defer done()
		if err != nil {
			return err
		}
	}
	return s.explain(writeFile(name, value))
}

// makeRoom has the kernel reclaim what is above a limit of memory on v2, and reports an error if
// that is not enough: memory.max by itself would have processes killed. The run is held back at
// the limit by memory.high until done is called.
func makeRoom(dir string, s setting) (done func(), err error) {
	limit, err := strconv.ParseUint(s.value, 10, 64)
	done = func() {}
	var files counterFiles
	used := func() (n uint64) {
		if err == nil {
			n, err = files.readUint(dir + "/memory.current")
		}
		return n
	}
	if used() <= limit || err != nil {
		return done, err
	}
	high := dir + "/memory.high"
	if err := writeFile(high, s.value); err != nil {
		return done, err
	}
	done = func() { _ = writeFile(high, "max") }
	if used() > limit && err == nil {
		err = s.explain(unix.EBUSY)
	}
	return done, err
}

// explain says what the kernel's refusal of a value means.
func (s setting) explain(err error) error {
	switch {
	case err == nil:
		return err
	case s.memory && errors.Is(err, unix.EBUSY):
		return s.option.wrong("the run uses more than %s bytes, and the kernel can't take them back: a higher limit, or when it uses less (%w)", s.value, err)
	case s.option == WithCPUs && errors.Is(err, unix.EINVAL):
		return s.option.wrong("the cgroup above has less than that: see WithCgroupParent (%w)", err)
	case s.option == WithCPUSet && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES)):
		return s.option.wrong("%q: the cgroup above does not have all of these CPUs (%w)", s.value, err)
	}
	return s.option.wrong("%w", err)
}
