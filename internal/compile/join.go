//go:build linux

package compile

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// A further command joins a live run. The clone that does so enters the run's namespaces, but stays
// outside its pid namespace: no process of the run can name it. Only its child, the command's
// process, is one of the run's processes. Until that has given up all rights,
//   - its memory, descriptors and files in /proc can't be looked at: it is not dumpable, and its
//     memory belongs to the cell's user namespace, in which nothing of a run has a capability
//     (kernel/ptrace.c, __ptrace_may_access);
//   - its real and saved user ids are root's, so that the run's user may neither signal nor trace
//     it: kill(2);
//   - it has one descriptor, the socket to the host.

// Entrances are the namespaces of a run by which a clone enters it where there is no user
// namespace, by their names in /proc/PID/ns. Elsewhere it enters by PID 1's pidfd: that takes the
// right to trace PID 1, which the cell's root has by its user namespace, but not without one.
var Entrances = []string{"pid", "ipc", "uts", "net", "mnt"}

// compileJoin compiles the plan of a further command in runs of the description and shape.
func compileJoin(c *spec.Spec, m *Machine, s Shape) (*Plan, error) {
	k := &compiler{c: c, m: m, shape: s, b: program.NewBuilder(), plan: &Plan{Joins: s.Joins}}
	entrances := k.declareEntrances()
	k.b.In(program.Setup)
	k.addEntry(entrances)
	k.addRootOfRun()
	if !s.HostIDs {
		k.b.Stage("privileges")
		k.addBounding(k.keptCapabilities())
	}
	k.addGroupPrivileges()
	k.addUndumpable()
	k.addOneDescriptor()

	k.b.In(program.Command)
	k.b.Stage("cgroup")
	k.b.Call("setsid", unix.SYS_SETSID)
	k.b.Event(program.Ready)
	k.addJoinCgroup()
	k.addUser()
	return k.plan, k.addRest()
}

func (k *compiler) declareEntrances() (slots []program.Slot) {
	if !k.shape.HostIDs {
		return []program.Slot{k.b.File("pidfd of the run's PID 1")}
	}
	for _, name := range Entrances {
		slots = append(slots, k.b.File(name+" namespace of the run"))
	}
	return slots
}

// addEntry enters the run's namespaces: setns(2). The mount namespace brings its root. The pid
// namespace is for children alone.
func (k *compiler) addEntry(entrances []program.Slot) {
	b, n := k.b, &k.c.Namespaces
	b.Stage("entering the run")
	if k.shape.HostIDs {
		for i, name := range Entrances {
			if name != "net" || n.Network != spec.NetworkHost {
				b.Call("setns", unix.SYS_SETNS, program.Use(entrances[i]), program.Int(0))
			}
		}
		return
	}
	flags, text := unix.CLONE_NEWUSER|unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS,
		"CLONE_NEWUSER|CLONE_NEWPID|CLONE_NEWNS|CLONE_NEWIPC|CLONE_NEWUTS"
	if n.Network != spec.NetworkHost {
		flags, text = flags|unix.CLONE_NEWNET, text+"|CLONE_NEWNET"
	}
	if n.Clocks != 0 {
		flags, text = flags|unix.CLONE_NEWTIME, text+"|CLONE_NEWTIME"
	}
	b.Call("setns", unix.SYS_SETNS, program.Use(entrances[0]), program.Int(flags, text))
}

// addRootOfRun makes the clone root in the run's user namespace, which it is not by entering it.
func (k *compiler) addRootOfRun() {
	b := k.b
	if k.shape.HostIDs {
		k.addBounding(0)
	} else if !k.shape.SingleID {
		k.addRootIDs()
	}
	k.addDefaultSignals()
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_NAME, "PR_SET_NAME"), b.Str("sandbox-exec"))
}

// addOneDescriptor leaves nothing open but the socket to the host, out of the way of the streams.
func (k *compiler) addOneDescriptor() {
	b := k.b
	b.Stage("descriptors")
	b.CallInto(program.Report, "dup3", unix.SYS_DUP3, program.Use(program.Report), program.Int(0), program.Int(unix.O_CLOEXEC, "O_CLOEXEC"))
	b.Call("close_range", unix.SYS_CLOSE_RANGE, program.Int(1), program.Int(uint32(math.MaxUint32), "~0"), program.Int(0))
	b.CallInto(program.Report, "fcntl", unix.SYS_FCNTL, program.Use(program.Report), dupAbove, firstFree)
	b.Call("close", unix.SYS_CLOSE, program.Int(0))
}

// addUser makes the command the run's user. As a change of the effective user id can make a process
// dumpable (see addUndumpable), the real and the saved one, by which others may trace and signal
// it, follow later.
func (k *compiler) addUser() {
	k.b.Stage("privileges")
	if !k.shape.SingleID {
		b, uid, same := k.b, program.Int(k.c.Namespaces.UID), program.Int(-1)
		b.Call("setresuid", unix.SYS_SETRESUID, same, uid, same)
		k.addUndumpable()
		b.Call("setresuid", unix.SYS_SETRESUID, uid, uid, uid)
	}
	k.addUserPrivileges()
}
