//go:build linux

// Package compile turns a description and facts about the machine and the cell into programs: what
// the kernel is told. It is pure: it looks only at what it is given.
package compile

import (
	"math"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// Machine is what compiling needs to know about the host.
type Machine struct {
	host.Facts
	Files     *HostFiles        // what HostRootfs shows of /etc and /var, nil for nothing
	Libraries map[string]string // of this program, by their place in a root
	Resolv    string            // the host's resolv.conf
}

// with returns the machine reduced to what a root in memory with the given parts shows of it.
func (m *Machine) with(p spec.Parts) *Machine {
	other := *m
	if p != spec.Programs {
		other.RootDirs, other.RootLinks, other.Files = nil, nil, nil
	}
	if p != spec.OwnProgram {
		other.Libraries = nil
	}
	return &other
}

// Shape is what compiling needs to know about the cell.
type Shape struct {
	SingleID bool // every id in the cell is the same
	HostIDs  bool // there is no user namespace
	// WideIDs means that the run has all ids from 0 to 65535, and that the host may map the ids
	// of files to them.
	WideIDs   bool
	Joins     int  // how many cgroups the command joins by itself; 0 if the host does it
	InNetwork bool // the clone begins in its own network namespace, with the loopback up
	// SavedID means that until it joins its cgroup, the command has this process's user id as
	// its saved one.
	SavedID bool

	Views host.View // cgroup file systems that runs of the cell may see
	View  host.View // those that this run sees
}

// Found is what compiling needs to know about what the options name.
type Found struct {
	spec.Found
	Missing []Point // mount points that the root's directories lack
}

// Point is a mount point that a root directory lacks. Its parents, as far as they exist, are named
// without symbolic links.
type Point struct {
	Path string
	File bool
	Own  bool          // it belongs to the run's user
	Have []overlay.Dir // directories on the way that exist, from the top

	Content string // it is a file with the run's own content: that of HostRootfs at this path
	Over    bool   // that file is mounted over one that exists
}

// isThere reports whether the root has the directory, and only its owner must differ.
func (p *Point) isThere() bool {
	return p.Own && len(p.Have) == strings.Count(p.Path, "/")
}

// Plan is a compiled description, except for its command.
type Plan struct {
	Copies *HostFiles // those that Template finds copied, if not nil
	// Template assembles the root that runs copy, or, if each has its own root, the devices of
	// that.
	Template *program.Program
	Key      [32]byte // hash of Template
	Trees    []Tree   // what accompanies Template
	Run      *program.Program
	Files    []Tree // what accompanies Run
	Joins    int    // as in its shape
	OwnUser  bool   // rootless: the run's user must be the caller

	join func() (*Plan, error) // see Join
}

// Join returns the plan of a further command in a run of this plan. It is compiled once.
func (p *Plan) Join() (*Plan, error) { return p.join() }

// Tree is a mount that accompanies a program.
type Tree struct {
	Path string // of a file or directory of the host
	// From, in place of Path, gives a scratch. It comes from the description or the machine.
	From     any
	Writable bool
	MapOwner bool          // its owner is the run's user
	MapAll   bool          // all owners are mapped, rather than the one
	MapIfCan bool          // go on without the mapping if it is not possible
	Partial  bool          // go on without the mounts below it if they can't be had
	Root     bool          // From takes the changes of a root
	Of       fault.Subject // what to name in an error
}

// compiler builds the two programs of a plan, or that of a command.
type compiler struct {
	c       *spec.Spec
	m       *Machine
	shape   Shape
	b       *program.Builder // of the run, or the command
	plan    *Plan
	layout  *spec.Layout
	ownRoot bool                 // each run assembles its own root: it may change it, or its ids own files in it
	missing []Point              // mount points that the root's directories lack
	bind    map[int]program.Slot // by index of c.Root.Mounts
	lower   map[string]program.Slot
	upper   program.Slot // the scratch that takes the root's changes, if any
	files   program.Slot // the layer of the host's files, if the run has its own root
	tree    program.Slot // the copy of the template
	mounts  program.Slot // the mount namespace
	gate    program.Slot
	later   []newFile // files that are opened for the command's program
}

// New compiles a description. The same description and facts give the same programs.
func New(c *spec.Spec, m *Machine, s Shape, f Found) (*Plan, error) {
	k := newCompiler(c, m, s, f)
	if err := k.checkOverlay(); err != nil {
		return nil, err
	}
	if err := k.compileTemplate(); err != nil {
		return nil, err
	}
	k.declareFiles()

	k.b.In(program.Setup)
	k.addNamespaces()
	k.addIdentity()
	k.addRoot()
	k.addEnterRoot()

	k.b.In(program.Command)
	k.addGate()
	k.openLater()
	k.addPrivileges()
	err := k.addRest()
	inside := &spec.Spec{Namespaces: c.Namespaces, Security: c.Security}
	k.plan.join = sync.OnceValues(func() (*Plan, error) { return compileJoin(inside, m, s) })
	return k.plan, err
}

// addRest adds what comes once the command's process is the run's user, and makes the program.
func (k *compiler) addRest() (err error) {
	if filterFirst(&k.c.Security) {
		if err := k.addSeccomp(); err != nil {
			return err
		}
	}
	k.addCommand()

	k.b.In(program.Init)
	k.addReaper()
	k.plan.Run, err = k.program(k.b)
	return err
}

func newCompiler(c *spec.Spec, m *Machine, s Shape, f Found) *compiler {
	k := &compiler{c: c, m: m.with(c.Root.Rootfs.Parts), shape: s, b: program.NewBuilder(), plan: &Plan{Joins: s.Joins}, layout: c.Root.Layout(f.Found), missing: f.Missing}
	k.ownRoot = c.Root.Writable != 0 || k.keepsIDs()
	return k
}

// program returns what the builder has collected. Once the options have been checked, it only fails
// if the command is given too much.
func (k *compiler) program(b *program.Builder) (*program.Program, error) {
	p, err := b.Program()
	if err == nil {
		return p, nil
	}
	option := "WithCommand"
	if len(strings.Join(k.c.Command.Env, "")) > len(strings.Join(k.c.Command.Argv, "")) {
		option = "WithEnv"
	}
	return nil, fault.Option(option, "%w: pass what is large in a file, with WithFile or WithReadOnlyBind", err)
}

// declareFiles declares the descriptors that accompany the run's program, in their order.
func (k *compiler) declareFiles() {
	k.declareTrees()
	k.tree = k.b.File("copy of the template")
	if !k.shape.HostIDs {
		k.gate = k.b.File("gate, open once the id maps are written")
	}
}

// addIdentity makes the clone root in its new user namespace, once the fork server has written the
// id maps. Until then it does what needs no ids.
func (k *compiler) addIdentity() {
	b := k.b
	if k.shape.HostIDs {
		k.addHostIdentity()
	} else {
		b.Stage("user namespace")
		b.Wait(k.gate)
	}
	if !k.shape.SingleID && !k.shape.HostIDs {
		k.addRootIDs()
	}
	// The command and PID 1 have descriptors of their own but share the slots.
	b.CallInto(program.Report, "fcntl", unix.SYS_FCNTL, program.Use(program.Report), dupAbove, firstFree)
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	k.addDefaultSignals()
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_NAME, "PR_SET_NAME"), b.Str("sandbox-init"))
}

// addRootIDs makes the clone root in a user namespace that it is in.
func (k *compiler) addRootIDs() {
	b, saved := k.b, program.Int(0)
	b.Call("setresgid", unix.SYS_SETRESGID, program.Int(0), program.Int(0), program.Int(0))
	if k.shape.SavedID {
		saved = program.Int(-1)
	}
	b.Call("setresuid", unix.SYS_SETRESUID, program.Int(0), program.Int(0), saved)
}

// addDefaultSignals undoes what a clone inherits: all signals are blocked around the clone, and the
// fork server ignores two, which exec would pass on.
func (k *compiler) addDefaultSignals() {
	b := k.b
	b.Call("rt_sigprocmask", unix.SYS_RT_SIGPROCMASK, program.Int(unix.SIG_SETMASK, "SIG_SETMASK"), b.Bytes(make([]byte, 8), "[]"), program.Int(0, "NULL"), program.Int(8))
	for _, s := range []unix.Signal{unix.SIGCHLD, unix.SIGPIPE} {
		b.Call("rt_sigaction", unix.SYS_RT_SIGACTION, program.Int(int(s), unix.SignalName(s)), b.Bytes(make([]byte, 32), "SIG_DFL"), program.Int(0, "NULL"), program.Int(8))
	}
}

// addEnterRoot makes the assembled root the root, with the cell's on top of it: pivot_root(2),
// "pivot_root(".", ".")".
func (k *compiler) addEnterRoot() {
	b := k.b
	b.Stage("entering the root")
	b.Call("fchdir", unix.SYS_FCHDIR, program.Use(k.tree))
	b.Call("pivot_root", unix.SYS_PIVOT_ROOT, b.Str("."), b.Str("."))
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/"))
}

// addForgetCell takes the cell's root away: the rest of what addEnterRoot begins. The kernel waits
// until no CPU looks at it any more (fs/namespace.c, namespace_unlock), so the command's process
// does it, while the host looks at that, and before anything that depends on a path.
func (k *compiler) addForgetCell() {
	b := k.b
	b.Stage("entering the root")
	b.Call("umount2", unix.SYS_UMOUNT2, b.Str("."), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
}

// Descriptors are moved above these to be out of the way of a run's own.
var (
	dupAbove  = program.Int(unix.F_DUPFD_CLOEXEC, "F_DUPFD_CLOEXEC")
	firstFree = program.Int(spec.MaxExtraFiles + 3)
)

// addGate tells the host that the command is ready to join its cgroup and waits until it has, or
// may. It also passes the run's mount namespace to the host. Undoing the mounts takes as long as
// all the rest of PID 1's end; so it happens when the host closes that descriptor.
func (k *compiler) addGate() {
	b := k.b
	b.Stage("cgroup")
	b.Call("setsid", unix.SYS_SETSID)
	b.SendFile(k.mounts)
	k.addForgetCell()
	if !k.shape.HostIDs { // meanwhile the host may put the process into its cgroup
		b.Stage("privileges to come")
		k.addBounding(k.keptCapabilities())
	}
	b.Stage("cgroup")
	k.addJoinCgroup()
	k.addView()
}

// addJoinCgroup waits until the host has put the command's process into the run's cgroup, or has
// sent what to join it by, and makes that the root of its cgroup namespace.
func (k *compiler) addJoinCgroup() {
	b := k.b
	for _, group := range b.WaitFiles(k.shape.Joins) {
		b.Call("write", unix.SYS_WRITE, program.Use(group), b.Str("0"), program.Int(1))
		b.Close(group)
	}
	b.Call("unshare", unix.SYS_UNSHARE, program.Int(unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"))
}

// addCommand goes on with the command's program, as soon as that arrives.
func (k *compiler) addCommand() {
	k.b.Stage("command")
	k.b.Receive()
}

// addReaper leaves PID 1 with nothing but the socket to the host.
func (k *compiler) addReaper() {
	b := k.b
	b.Stage("init")
	if k.shape.HostIDs {
		k.addNobody()
	}
	b.CallInto(program.Report, "dup3", unix.SYS_DUP3, program.Use(program.Report), program.Int(0), program.Int(unix.O_CLOEXEC, "O_CLOEXEC"))
	b.Call("close_range", unix.SYS_CLOSE_RANGE, program.Int(1), program.Int(uint32(math.MaxUint32), "~0"), program.Int(0))
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"), program.Int(1), program.Int(0), program.Int(0), program.Int(0))
	k.addCapset(0, 0)
	b.Event(program.Started)
}
