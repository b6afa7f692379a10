//go:build linux

package wall

import (
	"encoding/binary"
	"fmt"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// boot compiles what the clone executes that becomes PID 1. docs/RATIONALE.md compares it with what
// libcontainer does.
type boot struct {
	*program.Builder
	c    *Container
	made map[string]bool // what exists in the new root
}

// null is a null pointer.
var null = program.Int(0, "NULL")

func bootProgram(c *Container) (*program.Program, error) {
	b := &boot{program.NewBuilder(), c, map[string]bool{}}
	stderr := b.File("standard error")
	var files []program.Slot
	for i := range c.Files {
		files = append(files, b.File(fmt.Sprintf("descriptor %d", 3+i)))
	}
	b.addProcess()
	b.addFiles(stderr, files)
	// As this process: the container's root may not search the directories above.
	b.Call("chdir", unix.SYS_CHDIR, b.Str(c.Rootfs))
	b.Stage("ids")
	b.Wait(program.Report)
	b.addIDs()
	b.addNamespaces()
	b.addRoot()
	b.Stage("cgroup")
	b.Wait(program.Report)
	b.addIdentity()
	if caps := c.capabilities(); caps != nil {
		b.addCapabilities(caps)
	}
	b.Stage("exec")
	b.addDeathSignal() // setresuid(2) cleared it
	b.Call("rt_sigprocmask", unix.SYS_RT_SIGPROCMASK, program.Int(unix.SIG_SETMASK, "SIG_SETMASK"), b.Bytes(make([]byte, 8), "[]"), null, program.Int(8))
	b.Call("execve", unix.SYS_EXECVE, b.Str(c.Args[0]), b.Strings(c.Args), b.Strings(c.Env))
	return b.Program()
}

// addProcess ties the clone to the thread that made it, and takes it out of its session. If that
// thread has ended before, the clone finds its socket closed.
func (b *boot) addProcess() {
	b.Stage("process")
	b.addDeathSignal()
	b.Call("setsid", unix.SYS_SETSID)
	b.Call("umask", unix.SYS_UMASK, program.Int(0o022, "022"))
}

func (b *boot) addDeathSignal() {
	zero := program.Int(0)
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_PDEATHSIG, "PR_SET_PDEATHSIG"), program.Int(int(unix.SIGKILL), "SIGKILL"), zero, zero, zero)
}

// addFiles gives the clone the container's descriptors from 3 on, behind them the socket, which
// exec closes, and closes all others of this process: none is open when the clone enters its
// namespaces. They are moved out of the way first.
func (b *boot) addFiles(stderr program.Slot, files []program.Slot) {
	b.Stage("descriptors")
	last := 3 + len(files)
	for _, s := range append([]program.Slot{program.Report, stderr}, files...) {
		b.CallInto(s, "fcntl", unix.SYS_FCNTL, program.Use(s), program.Int(unix.F_DUPFD_CLOEXEC, "F_DUPFD_CLOEXEC"), program.Int(last+1))
	}
	for i, s := range append([]program.Slot{stderr, stderr}, files...) {
		b.Call("dup3", unix.SYS_DUP3, program.Use(s), program.Int(1+i), program.Int(0))
	}
	b.CallInto(program.Report, "dup3", unix.SYS_DUP3, program.Use(program.Report), program.Int(last), program.Int(unix.O_CLOEXEC, "O_CLOEXEC"))
	b.Call("close_range", unix.SYS_CLOSE_RANGE, program.Int(last+1), program.Int(uint32(math.MaxUint32), "~0"), program.Int(0))
	b.Call("close", unix.SYS_CLOSE, program.Int(0))
}

// addIDs makes the clone root in its user namespace, without the groups of this process.
func (b *boot) addIDs() {
	zero := program.Int(0)
	if b.c.HostIDs || !onlyOwnGroup(b.c.GIDs) {
		b.Call("setgroups", unix.SYS_SETGROUPS, zero, null)
	}
	if b.c.HostIDs {
		return
	}
	b.Call("setresgid", unix.SYS_SETRESGID, zero, zero, zero)
	b.Call("setresuid", unix.SYS_SETRESUID, zero, zero, zero)
	b.addDeathSignal()
}

// addNamespaces enters the other namespaces, which belong to the user namespace, and leaves this
// process's session keyring.
func (b *boot) addNamespaces() {
	b.Stage("namespaces")
	flags, text := unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS, "CLONE_NEWNS|CLONE_NEWIPC|CLONE_NEWUTS"
	if !b.c.HostNetwork {
		flags, text = flags|unix.CLONE_NEWNET, text+"|CLONE_NEWNET"
	}
	b.Call("unshare", unix.SYS_UNSHARE, program.Int(flags, text))
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); err != unix.ENOSYS {
		b.Call("keyctl", unix.SYS_KEYCTL, program.Int(unix.KEYCTL_JOIN_SESSION_KEYRING, "KEYCTL_JOIN_SESSION_KEYRING"), null)
	}
}

// addRoot assembles the root in a file system of its own, which nobody else has, so no path in it
// leads elsewhere. It hides the directory of the host that the clone is in. Every mount of the host
// is private before the first one of the container.
func (b *boot) addRoot() {
	b.Stage("root")
	b.mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
	root := b.FileSystem("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode=755", "size=64k")
	b.AttachAt(root, ".")
	b.Call("fchdir", unix.SYS_FCHDIR, program.Use(root))
	b.Close(root)
	for _, m := range b.c.mounts() {
		b.addMount(m)
	}
	// Read-only, so that nobody changes the host's own nodes. What they lead to can be written
	// to all the same: fs/open.c, do_dentry_open.
	b.Stage("devices")
	for _, d := range deviceNodes {
		b.addMount(mount{"bind", d.path, d.path, unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC, ""})
	}
	b.Stage("entering the root")
	b.Call("pivot_root", unix.SYS_PIVOT_ROOT, b.Str("."), b.Str("."))
	b.Call("umount2", unix.SYS_UMOUNT2, b.Str("."), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/"))
	b.mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// addMount makes the mount point, below the current directory, and the mount. The flags of a bind
// take a call of their own: mount(2).
func (b *boot) addMount(m mount) {
	at := path.Join("/", m.destination)[1:]
	b.addDirs(path.Dir(at))
	if m.kind == "bind" {
		if !b.made[at] {
			b.CreateFile(program.AtCWD, at, nil, 0o644)
		}
		b.made[at] = true
		b.mount(m.source, at, "", unix.MS_BIND, "")
		b.mount("", at, "", m.flags|unix.MS_REMOUNT, "")
		return
	}
	b.addDirs(at)
	purpose := program.General
	if m.kind == "proc" {
		purpose = program.OwnPlace
	}
	b.For(purpose, func() { b.mount(m.source, at, m.kind, m.flags, m.data) })
}

// addDirs makes the missing directories of a path, including the last one.
func (b *boot) addDirs(dir string) {
	if dir == "." || b.made[dir] {
		return
	}
	b.addDirs(path.Dir(dir))
	b.Mkdir(program.AtCWD, dir, 0o755)
	b.made[dir] = true
}

// mount adds a call of mount(2). An empty string is a null pointer.
func (b *boot) mount(source, target, kind string, flags int, data string) {
	str := func(s string) program.Arg {
		if s == "" {
			return null
		}
		return b.Str(s)
	}
	b.Call("mount", unix.SYS_MOUNT, str(source), b.Str(target), str(kind), program.Int(flags, mountText(flags)), str(data))
}

func mountText(flags int) string {
	var names []string
	for _, f := range []struct {
		bit  int
		name string
	}{{unix.MS_RDONLY, "MS_RDONLY"}, {unix.MS_NOSUID, "MS_NOSUID"}, {unix.MS_NODEV, "MS_NODEV"}, {unix.MS_NOEXEC, "MS_NOEXEC"}, {unix.MS_REMOUNT, "MS_REMOUNT"},
		{unix.MS_BIND, "MS_BIND"}, {unix.MS_REC, "MS_REC"}, {unix.MS_PRIVATE, "MS_PRIVATE"}, {unix.MS_STRICTATIME, "MS_STRICTATIME"}} {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, "|")
}

// addIdentity does the rest of what PID 1 begins with: an empty standard input, the host name, and
// all CPUs that its cgroup lets it use, whatever this thread's affinity is.
func (b *boot) addIdentity() {
	b.Stage("identity")
	// Descriptor 0 is the lowest that is free: open(2).
	b.Call("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/dev/null"), program.Int(unix.O_RDWR, "O_RDWR"), program.Int(0))
	b.Call("sethostname", unix.SYS_SETHOSTNAME, b.Str(hostname), program.Int(len(hostname)))
	all := make([]byte, 1024) // 8192 is the most CPUs that Linux can be built for: NR_CPUS
	for i := range all {
		all[i] = 0xff
	}
	b.CallMaybe("sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, program.Int(0), program.Int(len(all)), b.Bytes(all, "all"))
}

// addCapabilities leaves PID 1 only the named capabilities, in the bounding set too, and none to
// inherit: capabilities(7), capset(2).
func (b *boot) addCapabilities(names []string) {
	b.Stage("capabilities")
	var keep uint64
	for _, name := range names {
		keep |= 1 << spec.CapabilityNumber(name)
	}
	zero := program.Int(0)
	for i := 0; ; i++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err != nil {
			break // the kernel knows no more
		}
		if keep&(1<<i) == 0 {
			b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_CAPBSET_DROP, "PR_CAPBSET_DROP"), program.Int(i), zero, zero, zero)
		}
	}
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_CAP_AMBIENT, "PR_CAP_AMBIENT"), program.Int(unix.PR_CAP_AMBIENT_CLEAR_ALL, "PR_CAP_AMBIENT_CLEAR_ALL"), zero, zero, zero)
	head := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	head = append(head, 0, 0, 0, 0) // the pid
	var sets []byte
	for _, half := range []uint32{uint32(keep), uint32(keep >> 32)} {
		for _, set := range []uint32{half, half, 0} { // effective, permitted, inheritable
			sets = binary.NativeEndian.AppendUint32(sets, set)
		}
	}
	b.Call("capset", unix.SYS_CAPSET, b.Bytes(head, "{_LINUX_CAPABILITY_VERSION_3, 0}"), b.Bytes(sets, fmt.Sprintf("%#x", keep)))
}
