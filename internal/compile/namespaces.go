//go:build linux

package compile

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// addNamespaces gives the clone the namespaces that clone3 did not give it, and sets up what needs
// no root.
func (k *compiler) addNamespaces() {
	b, n := k.b, &k.c.Namespaces
	b.Stage("namespaces")
	flags, text := unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS, "CLONE_NEWNS|CLONE_NEWIPC|CLONE_NEWUTS"
	if k.newNetwork() {
		flags, text = flags|unix.CLONE_NEWNET, text+"|CLONE_NEWNET"
	}
	b.Call("unshare", unix.SYS_UNSHARE, program.Int(flags, text))
	k.mounts = b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/self/ns/mnt"), program.Int(unix.O_RDONLY|unix.O_CLOEXEC, "O_RDONLY|O_CLOEXEC"), program.Int(0))
	b.Call("mount", unix.SYS_MOUNT, program.Int(0, "NULL"), b.Str("/"), program.Int(0, "NULL"),
		program.Int(unix.MS_REC|unix.MS_PRIVATE, "MS_REC|MS_PRIVATE"), program.Int(0, "NULL"))
	b.Call("sethostname", unix.SYS_SETHOSTNAME, b.Str(n.Hostname), program.Int(len(n.Hostname)))
	b.Call("setdomainname", unix.SYS_SETDOMAINNAME, b.Str("(none)"), program.Int(len("(none)")))
	if k.newNetwork() {
		k.b.LoopbackUp()
	}
	if n.Clocks != 0 {
		k.addClocks(n.Clocks)
	}
}

// newNetwork reports whether the clone makes a network namespace.
func (k *compiler) newNetwork() bool {
	return k.c.Namespaces.Network != spec.NetworkHost && !k.shape.InNetwork
}

// addClocks moves the clone's clocks: time_namespaces(7). A new time namespace is for children,
// except for those that share memory with their parent, as the command does until it is executed;
// so the clone enters it too.
func (k *compiler) addClocks(offset time.Duration) {
	b := k.b
	b.StageFor(program.Clocks, "WithTimeOffset")
	flag := program.Int(unix.CLONE_NEWTIME, "CLONE_NEWTIME")
	b.Call("unshare", unix.SYS_UNSHARE, flag)
	seconds, nanoseconds := offset/time.Second, offset%time.Second
	if nanoseconds < 0 {
		seconds, nanoseconds = seconds-1, nanoseconds+time.Second
	}
	at := fmt.Sprintf("%d %d", seconds, int64(nanoseconds))
	offsets := b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/self/timens_offsets"), program.Int(unix.O_WRONLY|unix.O_CLOEXEC, "O_WRONLY|O_CLOEXEC"), program.Int(0))
	text := "monotonic " + at + "\nboottime " + at + "\n"
	b.Call("write", unix.SYS_WRITE, program.Use(offsets), b.Str(text), program.Int(len(text)))
	b.Close(offsets)
	ns := b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/proc/self/ns/time_for_children"), program.Int(unix.O_RDONLY|unix.O_CLOEXEC, "O_RDONLY|O_CLOEXEC"), program.Int(0))
	b.Call("setns", unix.SYS_SETNS, program.Use(ns), flag)
	b.Close(ns)
}

// addHostIdentity is for a run without a user namespace: the clone, which is root on the host, and
// all its children lose everything by which they could gain capabilities.
func (k *compiler) addHostIdentity() {
	b := k.b
	b.Stage("no user namespace")
	b.Call("setgroups", unix.SYS_SETGROUPS, program.Int(0), program.Int(0, "NULL"))
	k.addBounding(0)
}

// addFileRights gives the clone the rights to files of the run's user: setfsuid(2). In the rest of
// the set-up paths may lead through what the run, or another that is still alive, can change, and
// as root of the host the clone could be led to any file there. The capabilities that mounting
// takes are not affected: capabilities(7).
func (k *compiler) addFileRights() {
	b, n := k.b, &k.c.Namespaces
	b.Stage("rights to files")
	b.Call("setfsgid", unix.SYS_SETFSGID, program.Int(n.GID))
	b.Call("setfsuid", unix.SYS_SETFSUID, program.Int(n.UID))
}

// addNobody takes all of root's rights from PID 1. Its new id is one that no command can have, so
// that nothing in the run may trace it.
func (k *compiler) addNobody() {
	b, id := k.b, program.Int(spec.MaxID+1)
	b.Call("setresgid", unix.SYS_SETRESGID, id, id, id)
	b.Call("setresuid", unix.SYS_SETRESUID, id, id, id)
	k.addUndumpable()
}

// pingGroups returns the range of groups that may send echo requests without CAP_NET_RAW, over IPv4
// and IPv6, from SOCK_DGRAM sockets. In a new network namespace there are none: icmp(7). The kernel
// refuses groups that have no id in the run.
func (k *compiler) pingGroups() string {
	if k.shape.WideIDs || k.shape.HostIDs {
		return fmt.Sprintf("0 %d", spec.MaxID)
	}
	return fmt.Sprintf("%d %d", k.c.Namespaces.GID, k.c.Namespaces.GID)
}
