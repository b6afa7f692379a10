//go:build linux

package compile

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// addRlimits sets the resource limits of the command, once it needs no more descriptors itself:
// prlimit(2).
func (k *compiler) addRlimits() {
	b := k.b
	b.Stage("resource limits")
	// With a core limit of 0 a dump still goes to a program of the host, if the sysctl
	// kernel.core_pattern names one. With 1 it goes nowhere: core(5), fs/coredump.c. Priorities
	// that this process may take are not for the run.
	all := map[string]spec.Rlimit{"core": {Soft: 1, Hard: 1}, "nice": {}, "rtprio": {}}
	// What queued signals and messages take, and locked shared memory, is also counted together
	// for all runs: getrlimit(2). On cgroup v2 libcontainer lifts this process's own limit of
	// locked memory, and so the next cell's.
	for name, most := range map[string]uint64{"sigpending": 1024, "msgqueue": 128 * kib, "memlock": 8 * mib} {
		n := min(most, k.m.HardLimits[name])
		all[name] = spec.Rlimit{Soft: n, Hard: n}
	}
	all["nofile"] = spec.Rlimit{Soft: min(1024, k.m.HardLimits["nofile"]), Hard: k.m.HardLimits["nofile"]}
	maps.Copy(all, k.c.Command.Rlimits)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		l := unix.Rlimit{Cur: all[name].Soft, Max: all[name].Hard}
		raw := append([]byte(nil), (*[unsafe.Sizeof(l)]byte)(unsafe.Pointer(&l))[:]...)
		b.Call("prlimit64", unix.SYS_PRLIMIT64, program.Int(0), program.Int(spec.RlimitNumber(name), "RLIMIT_"+name),
			b.Bytes(raw, fmt.Sprintf("{%s, %s}", limitText(l.Cur), limitText(l.Max))), program.Int(0, "NULL"))
	}
}

func limitText(n uint64) string {
	if n == math.MaxUint64 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}
