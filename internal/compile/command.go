//go:build linux

package compile

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
)

// The runs of a service differ mostly in the command. So the command has a program of its own,
// which a run receives when all the rest of the set-up is done.

// Checked at compile time: all files that the set-up makes and the command fills can be passed on.
const _ = uint(program.MaxPassed - spec.MaxFilled)

// Command compiles the program that ends in the execution of the command.
func Command(c *spec.Spec, m *Machine) (*program.Program, error) {
	k := &compiler{c: c, m: m, b: program.NewBuilder()}
	k.b.In(program.Command)
	l := c.Root.Layout(spec.Found{})
	filled := k.declareFilled(l.Filled)
	streams := k.declareStreams()
	k.fillFiles(l.Filled, filled) // first: their descriptors may have the streams' numbers
	if c.Command.Hold {
		k.addCommandFiles(l.Files)
		k.addHold()
		return k.program(k.b)
	}
	if c.Command.Terminal.On {
		k.addTerminal(streams)
	}
	k.addStreams(streams)
	k.addCommandFiles(l.Files)
	k.addDir()
	k.addRlimits()
	if !filterFirst(&c.Security) {
		if err := k.addSeccomp(); err != nil {
			return nil, err
		}
	}
	k.addExec()
	return k.program(k.b)
}

// declareFilled declares the open files that the run's program passes on.
func (k *compiler) declareFilled(files []spec.Placed) (open []program.Slot) {
	for _, p := range files {
		open = append(open, k.b.Passed("the file "+p.Dst))
	}
	return open
}

// fillFiles writes the content of files that the set-up made.
func (k *compiler) fillFiles(files []spec.Placed, open []program.Slot) {
	for i, p := range files {
		k.b.Stage("WithFile " + p.Dst)
		file := p.Source.(spec.File)
		k.b.Fill(open[i], []byte(file.Data), file.Mode)
	}
}

// declareStreams declares the descriptors that accompany the program, in their order.
func (k *compiler) declareStreams() (streams []program.Slot) {
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		streams = append(streams, k.b.File(name))
	}
	for _, name := range k.c.Streams.ExtraNames() {
		streams = append(streams, k.b.File(name))
	}
	return streams
}

// addTerminal makes a terminal of the run's own devpts, which controls the command's session, its
// standard streams, and sends the other end to the host: pts(4), ioctl_tty(2). The command leads
// the session.
func (k *compiler) addTerminal(streams []program.Slot) {
	b, t := k.b, k.c.Command.Terminal
	b.Stage("WithTerminal")
	open := program.Int(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, "O_RDWR|O_NOCTTY|O_CLOEXEC")
	other := b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str("/dev/ptmx"), open, program.Int(0))
	ioctl := func(s program.Slot, request uint, name string, arg program.Arg) {
		b.Call("ioctl", unix.SYS_IOCTL, program.Use(s), program.Int(request, name), arg)
	}
	ioctl(other, unix.TIOCSPTLCK, "TIOCSPTLCK", b.Bytes(make([]byte, 4), "0"))
	size := make([]byte, 8) // struct winsize
	binary.NativeEndian.PutUint16(size, t.Rows)
	binary.NativeEndian.PutUint16(size[2:], t.Cols)
	ioctl(other, unix.TIOCSWINSZ, "TIOCSWINSZ", b.Bytes(size, fmt.Sprintf("{%d rows, %d columns}", t.Rows, t.Cols)))
	terminal := b.CallTo("ioctl", unix.SYS_IOCTL, program.Use(other), program.Int(unix.TIOCGPTPEER, "TIOCGPTPEER"), open)
	ioctl(terminal, unix.TIOCSCTTY, "TIOCSCTTY", program.Int(0))
	b.SendFileWith(program.Terminal, other)
	b.Close(other)
	for i := range 3 {
		streams[i] = terminal
	}
}

// addStreams puts the standard streams and extra files at 0, 1, 2 and so on. They are moved out of
// the way first.
func (k *compiler) addStreams(streams []program.Slot) {
	b := k.b
	b.Stage("standard streams")
	moved := make([]program.Slot, len(streams))
	for i, s := range streams {
		moved[i] = b.CallTo("fcntl", unix.SYS_FCNTL, program.Use(s), dupAbove, firstFree)
	}
	for i, s := range moved {
		b.Call("dup3", unix.SYS_DUP3, program.Use(s), program.Int(i), program.Int(0))
	}
	// All others are close-on-exec from the start; this is in case one is not. It takes Linux
	// 5.11.
	b.CallMaybe("close_range", unix.SYS_CLOSE_RANGE, program.Int(len(moved)), program.Int(uint32(math.MaxUint32), "~0"),
		program.Int(unix.CLOSE_RANGE_CLOEXEC, "CLOSE_RANGE_CLOEXEC"))
}

// addCommandFiles makes files of WithFile as the run's user, and so nothing that the user could not
// make. Missing directories above them belong to the user as well.
func (k *compiler) addCommandFiles(files []spec.Placed) {
	if len(files) == 0 {
		return
	}
	b, made := k.b, map[string]bool{}
	for i, p := range files {
		b.StageFor(program.Place, "WithFile "+p.Dst)
		if i == 0 {
			b.Call("umask", unix.SYS_UMASK, program.Int(0))
		}
		for at := len(p.On.Dst) + 1; ; at++ {
			next := strings.IndexByte(p.Dst[at:], '/')
			if next < 0 {
				break
			}
			at += next
			if dir := p.Dst[:at]; !made[dir] {
				b.CallMaybe("mkdirat", unix.SYS_MKDIRAT, program.AtCWD, b.Str(dir), program.Int(0o755, "0755"))
				made[dir] = true
			}
		}
		file := p.Source.(spec.File)
		b.CreateFile(program.AtCWD, p.Dst, []byte(file.Data), file.Mode)
	}
	b.Call("umask", unix.SYS_UMASK, program.Int(defaultUmask, "022"))
}

// addDir goes to the working directory, as the run's user. A link in /proc/self/fd on the way, to a
// descriptor that leads out of the root and that the command will not have (CVE-2024-21626), ends
// in an error or inside the root: for a directory that can't be reached, getcwd(2) returns
// "(unreachable)/...".
func (k *compiler) addDir() {
	b, dir := k.b, k.c.Command.Dir
	if dir == "" {
		dir = spec.HomeDir
	}
	b.StageFor(program.Directory, "WithDir")
	b.Call("chdir", unix.SYS_CHDIR, b.Str(dir))
	path := make([]byte, pathMax+1)
	path[0] = '/'
	there := b.Bytes(path, "real path")
	b.Call("getcwd", unix.SYS_GETCWD, b.Inside(there, 1), program.Int(pathMax))
	b.Call("chdir", unix.SYS_CHDIR, there)
}

const pathMax = 4096 // PATH_MAX

// addExec executes the command, at the first place of the list that has it.
func (k *compiler) addExec() {
	b := k.b
	name, env := k.c.Command.Argv[0], k.c.Command.Environ()
	b.StageFor(program.Exec, "exec "+name)
	argv, envp := b.Strings(k.c.Command.Argv), b.Strings(env)
	for _, path := range spec.LookupList(name, env) {
		b.CallTry("execve", unix.SYS_EXECVE, b.Str(path), argv, envp)
	}
	b.FailTried("not found: " + name)
}

// addHold makes init live without a command, whose process just ends. Nothing that init may be told
// of wakes it; the kernel reaps what becomes its children: wait(2), signal(7).
func (k *compiler) addHold() {
	b := k.b
	b.In(program.Init)
	b.Stage("hold")
	ignore := make([]byte, 32) // struct sigaction
	binary.NativeEndian.PutUint64(ignore, 1)
	null := program.Int(0, "NULL")
	b.CallMaybe("rt_sigaction", unix.SYS_RT_SIGACTION, program.Int(int(unix.SIGCHLD), "SIGCHLD"), b.Bytes(ignore, "SIG_IGN"), null, program.Int(8))
	b.CallMaybe("wait4", unix.SYS_WAIT4, program.Int(-1), null, program.Int(unix.WALL, "__WALL"), null)
	b.CallMaybe("ppoll", unix.SYS_PPOLL, null, program.Int(0), null, null)
}

// Filter returns the compiled seccomp filter, or nil if there is to be none.
func Filter(s *spec.Security) (*seccomp.Filter, error) {
	switch {
	case s.NoSeccomp:
		return nil, nil
	case s.Seccomp != nil:
		f, err := seccomp.CachedCompile(s.Seccomp)
		if err != nil {
			return nil, fault.Option("WithSeccomp", "%w", err)
		}
		return f, nil
	}
	f, err := seccomp.CachedDefault(s.Capabilities, s.SetID)
	if err != nil {
		return nil, &fault.SetupError{Stage: "seccomp", Err: err}
	}
	return f, nil
}
