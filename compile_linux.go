package sandbox

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// machine is what compiling needs to know about the host.
type machine struct {
	host.Facts
	files     *hostFiles        // what HostRootfs shows of /etc and /var, nil for nothing
	libraries map[string]string // files that the root of own functions shows, by where
	resolv    string            // the host's resolv.conf
}

// now is the machine with what may change while this process lives.
func (m *machine) now(c *spec.Spec) *machine {
	other := *m
	if c.Root.ShowsHost() {
		other.files = m.hostFilesNow()
	}
	if c.Namespaces.Network == spec.NetworkHost {
		other.resolv = host.Resolv()
	}
	return &other
}

// with is the machine of which roots in memory show the given parts.
func (m *machine) with(p spec.Parts) *machine {
	if p == spec.Programs {
		return m
	}
	other := *m
	other.RootDirs, other.RootLinks, other.files = nil, nil, nil
	if p == spec.OwnProgram {
		other.libraries = ownLibraries()
	}
	return &other
}

// shape is what compiling needs to know about the cell.
type shape struct {
	singleID bool // every id in the cell is the same
	hostIDs  bool // there is no user namespace
	wideIDs  bool // the run has all ids from 0 to 65535, and the host may map those of files to them
	joins    int  // how many cgroups the command joins by itself; none if the host sees to that
	savedID  bool // until it joins its cgroup, the command has this process's user id as its saved one

	views host.View // cgroup file systems that runs of the cell may see
	view  host.View // those that this one sees
}

// plan is a compiled sandbox, but for its command.
type plan struct {
	copies   *program.Program // files of the host's programs: what template begins with, if not nil
	copied   int              // how many
	template *program.Program // assembles the root that runs copy, or of a root of their own the devices
	key      [32]byte         // hash of template
	trees    []tree           // what accompanies template
	run      *program.Program
	files    []tree // what accompanies run
	joins    int    // as its shape's
	ownUser  bool   // rootless: the run's user must be the caller
}

// plans caches a sandbox's plans, one per shape of cell, as long as what they show of the host
// stays the same.
type plans struct {
	mu     sync.Mutex
	all    map[shape]*plan
	files  *hostFiles
	resolv string
}

// forget makes the next start compile anew.
func (p *plans) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = nil
}

// compiler builds the two programs of a plan, or that of a command.
type compiler struct {
	c       *spec.Spec
	m       *machine
	shape   shape
	b       *program.Builder // of the run, or the command
	plan    *plan
	layout  *spec.Layout
	missing []point              // mount points that the root's directories lack
	bind    map[int]program.Slot // by index of c.Root.Mounts
	lower   map[string]program.Slot
	upper   program.Slot // the scratch that takes the root's changes, if there is one
	files   program.Slot // the layer of the host's files, of a root of the run's own
	tree    program.Slot // the copy of the template
	mounts  program.Slot // the mount namespace
	gate    program.Slot
	later   []newFile // what the command opens for its program
}

// compile turns the options into programs. It is pure: the same options on the
// same machine give the same programs.
func compile(c *spec.Spec, m *machine, s shape, f found) (*plan, error) {
	k := &compiler{c: c, m: m.with(c.Root.Rootfs.Parts), shape: s, b: program.NewBuilder(), plan: &plan{joins: s.joins}, layout: c.Root.Layout(f.Found), missing: f.missing}
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
	if filterFirst(&c.Security) {
		if err := k.addSeccomp(); err != nil {
			return nil, err
		}
	}
	k.addCommand()

	k.b.In(program.Init)
	k.addReaper()
	var err error
	k.plan.run, err = k.program(k.b)
	return k.plan, err
}

// program is what the builder has collected. Once the options have been checked, only what the
// command is given can be too much.
func (k *compiler) program(b *program.Builder) (*program.Program, error) {
	p, err := b.Program()
	if err == nil {
		return p, nil
	}
	option := "WithCommand"
	if len(strings.Join(k.c.Command.Env, "")) > len(strings.Join(k.c.Command.Argv, "")) {
		option = "WithEnv"
	}
	return nil, fault.Option(option, "%w: pass what is large in a file, with WithReadOnlyBind", err)
}

// declareFiles says in which order descriptors accompany the run's program.
func (k *compiler) declareFiles() {
	k.declareTrees()
	k.tree = k.b.File("copy of the template")
	if !k.shape.hostIDs {
		k.gate = k.b.File("gate, open once the id maps are written")
	}
}

// addIdentity makes the clone root in its new user namespace, once the fork
// server has written the id maps. What needs no ids comes before, meanwhile.
func (k *compiler) addIdentity() {
	b := k.b
	if k.shape.hostIDs {
		k.addHostIdentity()
	} else {
		b.Stage("user namespace")
		b.Wait(k.gate)
	}
	if !k.shape.singleID && !k.shape.hostIDs {
		b.Call("setresgid", unix.SYS_SETRESGID, program.Int(0), program.Int(0), program.Int(0))
		saved := program.Int(0)
		if k.shape.savedID {
			saved = program.Int(-1)
		}
		b.Call("setresuid", unix.SYS_SETRESUID, program.Int(0), program.Int(0), saved)
	}
	// The command and PID 1 have descriptors of their own but share the slots.
	b.CallInto(program.Report, "fcntl", unix.SYS_FCNTL, program.Use(program.Report), dupAbove, firstFree)
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	// All signals are blocked around the clone, and the fork server ignores two,
	// which exec would pass on.
	b.Call("rt_sigprocmask", unix.SYS_RT_SIGPROCMASK, program.Int(unix.SIG_SETMASK, "SIG_SETMASK"), b.Bytes(make([]byte, 8), "[]"), program.Int(0, "NULL"), program.Int(8))
	for _, s := range []unix.Signal{unix.SIGCHLD, unix.SIGPIPE} {
		b.Call("rt_sigaction", unix.SYS_RT_SIGACTION, program.Int(int(s), unix.SignalName(s)), b.Bytes(make([]byte, 32), "SIG_DFL"), program.Int(0, "NULL"), program.Int(8))
	}
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_NAME, "PR_SET_NAME"), b.Str("sandbox-init"))
}

// addEnterRoot makes the assembled root the root and forgets the cell's:
// pivot_root(2), "pivot_root(".", ".")".
func (k *compiler) addEnterRoot() {
	b := k.b
	b.Stage("entering the root")
	b.Call("fchdir", unix.SYS_FCHDIR, program.Use(k.tree))
	b.Call("pivot_root", unix.SYS_PIVOT_ROOT, b.Str("."), b.Str("."))
	b.Call("umount2", unix.SYS_UMOUNT2, b.Str("."), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/"))
}

// Descriptors that must not be in the way of a run's own move above these.
var (
	dupAbove  = program.Int(unix.F_DUPFD_CLOEXEC, "F_DUPFD_CLOEXEC")
	firstFree = program.Int(spec.MaxExtraFiles + 3)
)

// addGate tells the host that the command is ready to join its cgroup and waits until
// it has, or may. With that it hands over the run's mount namespace, so that undoing the mounts, which takes as long as all the rest of PID 1's
// end, is left to whoever closes that.
func (k *compiler) addGate() {
	b := k.b
	b.Stage("cgroup")
	b.Call("setsid", unix.SYS_SETSID)
	b.SendFile(k.mounts)
	for _, group := range b.WaitFiles(k.shape.joins) {
		b.Call("write", unix.SYS_WRITE, program.Use(group), b.Str("0"), program.Int(1))
		b.Close(group)
	}
	b.Call("unshare", unix.SYS_UNSHARE, program.Int(unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"))
	k.addView()
}

// addCommand goes on with what is to be executed, as soon as that is known.
func (k *compiler) addCommand() {
	k.b.Stage("command")
	k.b.Receive()
}

// addReaper leaves PID 1 with nothing but the socket to the host.
func (k *compiler) addReaper() {
	b := k.b
	b.Stage("init")
	if k.shape.hostIDs {
		k.addNobody()
	}
	b.CallInto(program.Report, "dup3", unix.SYS_DUP3, program.Use(program.Report), program.Int(0), program.Int(unix.O_CLOEXEC, "O_CLOEXEC"))
	b.Call("close_range", unix.SYS_CLOSE_RANGE, program.Int(1), program.Int(uint32(math.MaxUint32), "~0"), program.Int(0))
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"), program.Int(1), program.Int(0), program.Int(0), program.Int(0))
	k.addCapset(0)
	b.Event(program.Started)
}

// thisMachine is gathered once per process.
var thisMachine = sync.OnceValue(func() *machine { return &machine{Facts: host.Gather()} })

// plan compiles once per shape.
func (p *plans) plan(c spec.Spec, sh shape) (*plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := thisMachine().now(&c)
	if m.files != p.files || m.resolv != p.resolv {
		p.all, p.files, p.resolv = nil, m.files, m.resolv
	}
	if have := p.all[sh]; have != nil {
		return have, nil
	}
	if c.Root.IfCan && !m.AtLeast(5, 11) {
		c.Root.Writable = 0
	}
	f, err := lookFor(&c.Root, host.HasOverlay() && m.AtLeast(5, 11))
	if err != nil {
		return nil, err
	}
	if err := m.checkOverlay(&c.Root, f.missing); err != nil {
		return nil, err
	}
	made, err := compile(&c, m, sh, f)
	if err != nil {
		return nil, err
	}
	if p.all == nil {
		p.all = map[shape]*plan{}
	}
	p.all[sh] = made
	return made, nil
}

// checkOverlay refuses what takes overlayfs in a user namespace: Linux 5.11.
func (m *machine) checkOverlay(r *spec.Root, missing []point) error {
	old := fmt.Errorf("overlayfs in a user namespace takes Linux 5.11, and this is %d.%d", m.Kernel[0], m.Kernel[1])
	switch {
	case m.AtLeast(5, 11):
		return nil
	case r.Writable != 0:
		return &SetupError{Stage: "WithWritableRoot", Err: old, Hint: "a newer kernel, or WithTmpfs and WithBind where the command writes"}
	case len(r.Rootfs.Layers) > 1:
		return &SetupError{Stage: r.Subject().String(), Err: fmt.Errorf("LayersRootfs: %w", old), Hint: "a newer kernel, or DirRootfs of one directory"}
	case len(missing) > 0 && missing[0].content == "":
		return &SetupError{Stage: r.Subject().String(), Err: fmt.Errorf("the directory has no %s: %w", missing[0].path, old), Hint: "make the mount points in it, or a newer kernel"}
	}
	return nil
}

func (s *Sandbox) explain() (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	p, err := s.plans.plan(s.config, shape{hostIDs: s.config.Namespaces.HostIDs, wideIDs: !s.config.Namespaces.HostIDs})
	if err != nil {
		return "", err
	}
	command, err := s.command.program(&s.config)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# %s/%s\n", runtime.GOOS, runtime.GOARCH)
	if p.copies != nil {
		fmt.Fprintf(&text, "## once per cell: a root with %d files of the host's programs, in %d calls\n", p.copied, p.copies.Len())
	}
	text.WriteString("## once per cell: assemble what runs copy\n" + p.template.Explain())
	flags := "CLONE_NEWUSER|CLONE_NEWPID|CLONE_PIDFD"
	if s.config.Namespaces.HostIDs {
		flags = "CLONE_NEWPID|CLONE_PIDFD"
	}
	text.WriteString("## every run: clone3(" + flags + "), then\n" + p.run.Explain())
	text.WriteString("## what it receives\n" + command.Explain())
	return text.String(), nil
}
