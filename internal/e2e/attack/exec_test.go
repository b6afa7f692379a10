//go:build linux

package attack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// The process by which a further command comes into a run has all rights in the run until it has
// joined the cgroup. The run is full of hostile processes by then (CVE-2016-9962, CVE-2019-5736).
// Here it waits before it joins for as long as they try. The controls are the same attacks on a
// process that has been executed.
func TestAttackRootlessExec(t *testing.T) {
	kept := sandbox.WithCapabilities("CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_CHECKPOINT_RESTORE")
	for _, test := range []struct {
		name  string
		opts  []sandbox.Option
		power bool // what runs may do to their own processes, they may do to this one
	}{
		{"default", nil, runs.OneID(t)},
		{"without a filter", []sandbox.Option{sandbox.WithoutSeccomp()}, runs.OneID(t)},
		{"uid 0", []sandbox.Option{sandbox.WithUser(0, 0)}, true},
		{"with capabilities", []sandbox.Option{kept, sandbox.WithoutSeccomp()}, true},
		{"without a user namespace", []sandbox.Option{sandbox.WithoutUserNamespace(), sandbox.WithUser(runs.HostID, runs.HostID+1)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "without a user namespace" {
				testkit.Need(t, "root's power over processes")
			}
			r := startVictim(t, append(runs.HelperOptions(), test.opts...)...)
			joining := r.joining(t)
			for _, a := range r.attacked(t, joining) {
				require.True(t, !a.through || test.power && slices.Contains(powers, a.name), a.name)
			}
			ordinary := r.execute(t, func(c *spec.Spec) { sandbox.WithCommand("sleep", "1000")(c) })
			through := map[string]bool{}
			for _, a := range r.attacked(t, insideRun(t, ordinary.PID())) {
				through[a.name] = a.through
			}
			for _, name := range append([]string{"environ", "exe", "maps"}, powers...) {
				require.True(t, through[name] || name == "priority" || name == "affinity", "the control: %s", name)
			}
		})
	}
}

// powers are attacks that need no look inside.
var powers = []string{"priority", "affinity", "limits", "signal", "stop"}

// victim is a run that a command joins.
type victim struct {
	*run.Run
	engine *run.Engine
	of     *run.Sandbox
}

func startVictim(t *testing.T, opts ...sandbox.Option) *victim {
	var c spec.Spec
	sandbox.New(opts...).With(sandbox.WithCommand("sleep", "1000"), func(got *spec.Spec) { c = *got })
	e := run.NewEngine()
	t.Cleanup(func() { require.NoError(t, e.Shutdown(context.Background())) })
	v := &victim{engine: e, of: e.New(c)}
	var err error
	v.Run, err = v.of.Start(testkit.Deadline(t))
	require.NoError(t, err)
	t.Cleanup(func() { _ = v.Kill(); _, _ = v.Wait() })
	return v
}

// joining makes a process join the run until it has all rights and waits, and returns its number in
// the run.
func (v *victim) joining(t *testing.T) int {
	in, err := v.engine.Cell(&v.of.Spec)
	require.NoError(t, err)
	plan, err := compile.New(&v.of.Spec, v.engine.Machine(), compile.Shape{SingleID: in.SingleID(), HostIDs: in.Config().HostIDs}, compile.Found{})
	require.NoError(t, err)
	join, err := plan.Join()
	require.NoError(t, err)
	init := testkit.Parent(t, v.PID())
	var files []int
	if in.Config().HostIDs {
		for _, name := range compile.Entrances {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", init, name))
			require.NoError(t, err)
			defer f.Close()
			files = append(files, int(f.Fd()))
		}
	} else {
		fd, err := unix.PidfdOpen(init, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		files = append(files, fd)
	}
	conn, err := in.Join(join.Run, files)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	for {
		m, err := conn.Next()
		require.NoError(t, err)
		if m.File != nil {
			m.File.Close()
		}
		require.Contains(t, []program.Kind{program.Cloned, program.Ready}, m.Kind)
		if m.Kind == program.Ready {
			return insideRun(t, m.PID)
		}
	}
}

// insideRun returns the number that a process has in its run.
func insideRun(t *testing.T, pid int) (inside int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(numbers)
			inside, err = strconv.Atoi(f[len(f)-1])
			require.NoError(t, err)
		}
	}
	require.NotZero(t, inside)
	return inside
}

func (v *victim) execute(t *testing.T, set func(*spec.Spec)) *run.Run {
	x, err := v.Exec(testkit.Deadline(t), set)
	require.NoError(t, err)
	return x
}

type namedOutcome struct {
	name string
	outcome
}

// attacked has another command of the run try all attacks on a process.
func (v *victim) attacked(t *testing.T, pid int) (list []namedOutcome) {
	var out bytes.Buffer
	x := v.execute(t, func(c *spec.Spec) {
		sandbox.WithCommand("/helper", testkit.HelperArgs("attack", "exec", strconv.Itoa(pid))...)(c)
		sandbox.WithStdout(&out)(c)
	})
	_, err := x.Wait()
	require.NoError(t, err)
	for name, o := range tried(t, "exec", out.String()) {
		if name != "end" {
			t.Log(name, o)
			list = append(list, namedOutcome{name, o})
		}
	}
	return list
}

func init() {
	testkit.AddHelper("stalk", stalkHelper)
	var list []attack
	add := func(name string, try func(pid string) error) {
		list = append(list, attack{name, func(args []string) error { return try(args[0]) }, false})
	}
	add("trace", func(pid string) error { return rawCall(unix.SYS_PTRACE, unix.PTRACE_SEIZE, number(pid), 0, 0) })
	add("attach", func(pid string) error { return rawCall(unix.SYS_PTRACE, unix.PTRACE_ATTACH, number(pid), 0, 0) })
	add("a descriptor", func(pid string) error {
		fd, err := unix.PidfdOpen(int(number(pid)), 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range 200 {
			if err = opened(unix.PidfdGetfd(fd, i, 0)); err == nil {
				return nil
			}
		}
		return err
	})
	add("descriptors", func(pid string) error { return readable(filepath.Glob("/proc/" + pid + "/fd/*")) })
	add("memory", func(pid string) error {
		var b [8]byte
		local := []unix.Iovec{{Base: &b[0], Len: 8}}
		_, err := unix.ProcessVMReadv(int(number(pid)), local, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
		return refusedBy(err, unix.EPERM)
	})
	for _, name := range []string{"environ", "mem", "maps", "auxv", "syscall", "stack", "smaps", "pagemap", "io"} {
		add(name, func(pid string) error {
			return withFile("/proc/"+pid+"/"+name, func(fd int) error { return readSome(fd) })
		})
	}
	for _, name := range []string{"root", "cwd", "exe", "ns/user", "ns/mnt"} {
		add(name, func(pid string) error {
			if to, err := os.Readlink("/proc/" + pid + "/" + name); err != nil || to != "" {
				return err
			}
			return errNothing
		})
	}
	for _, name := range []string{"comm", "oom_score_adj", "timerslack_ns", "coredump_filter", "setgroups"} {
		add("write "+name, func(pid string) error {
			return os.WriteFile("/proc/"+pid+"/"+name, []byte("0"), 0)
		})
	}
	add("limits", func(pid string) error {
		return unix.Prlimit(int(number(pid)), unix.RLIMIT_NOFILE, &unix.Rlimit{}, nil)
	})
	add("group", func(pid string) error { return unix.Setpgid(int(number(pid)), 0) })
	add("priority", func(pid string) error { return unix.Setpriority(unix.PRIO_PROCESS, int(number(pid)), 19) })
	add("affinity", func(pid string) error {
		var set unix.CPUSet
		set.Set(0)
		return unix.SchedSetaffinity(int(number(pid)), &set)
	})
	add("signal", func(pid string) error { return unix.Kill(int(number(pid)), 0) })
	add("stop", func(pid string) error { return unix.Kill(int(number(pid)), unix.SIGSTOP) })
	attacks["exec"] = list
}

// readSome reads a byte.
func readSome(fd int) error {
	var b [1]byte
	n, err := unix.Read(fd, b[:])
	if err == nil && n == 0 {
		return errNothing
	}
	return err
}

// The process is attacked at any moment of its way, by a run full of processes that do nothing
// else.
func TestAttackRootlessExecStalked(t *testing.T) {
	var signals []string
	if !runs.OneID(t) {
		signals = []string{"signals"}
	}
	p := runs.Start(t, sandbox.New(runs.HelperOptions()...).With(sandbox.WithHold()))
	var out bytes.Buffer
	var stalkers []*sandbox.Process
	ctx, cancel := context.WithCancel(testkit.Deadline(t))
	for range 2 {
		x, err := p.Exec(ctx, sandbox.WithCommand("/helper", testkit.HelperArgs("stalk", signals...)...), sandbox.WithStdout(&out), sandbox.WithStderr(&out))
		require.NoError(t, err)
		stalkers = append(stalkers, x)
	}
	failed := 0
	for began := time.Now(); time.Since(began) < testkit.Patience/10; {
		ctx, cancel := context.WithTimeout(testkit.Deadline(t), testkit.Patience/100)
		x, err := p.Exec(ctx, sandbox.WithCommand("true"))
		if err == nil {
			_, err = x.Wait()
		}
		if err != nil {
			failed++ // stopped or killed once it had nothing any more
		}
		cancel()
	}
	cancel()
	for _, x := range stalkers {
		_, err := x.Wait()
		require.ErrorIs(t, err, context.Canceled)
	}
	t.Log(failed, "were killed without rights")
	require.NotContains(t, out.String(), "got")
}

// stalkHelper attacks each process that is about to be executed, and prints what got through while
// it was. With an argument it looks at signals too.
func stalkHelper(args []string) error {
	runtime.LockOSThread() // which traces
	for {
		entries, _ := os.ReadDir("/proc")
		for i := len(entries) - 1; i >= 0; i-- {
			pid, err := strconv.Atoi(entries[i].Name())
			if err != nil || !isJoining(pid) {
				continue
			}
			if unix.PtraceAttach(pid) == nil {
				if isJoining(pid) {
					fmt.Println("got: traced")
				}
				_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
				_ = unix.PtraceDetach(pid)
			}
			if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0); err == nil {
				if isJoining(pid) {
					fmt.Println("got: memory")
				}
				f.Close()
			}
			if to, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && to != "" && isJoining(pid) {
				fmt.Println("got: exe")
			}
			if err := unix.Kill(pid, syscall.Signal(0)); err == nil && len(args) > 0 && hasRights(pid) {
				fmt.Println("got: signal")
			}
		}
	}
}

func isJoining(pid int) bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && string(comm) == "sandbox-exec\n"
}

// hasRights reports whether a process has capabilities.
func hasRights(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && isJoining(pid) && strings.Contains(string(b), "\nCapPrm:") && !strings.Contains(string(b), "\nCapPrm:\t0000000000000000")
}

// The network namespace of a run serves no other while anything of the run is left, and never again
// if a command of it has handed on an open file of its /proc.
func TestAttackRootlessExecNetwork(t *testing.T) {
	cell, err := sandbox.NewCell()
	require.NoError(t, err)
	defer cell.Close()
	exe, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer exe.Close()
	l, dir := accomplice(t)
	box := sandbox.New(sandbox.WithHold(), sandbox.WithCell(cell), sandbox.WithReadOnlyBind(dir, "/srv"))
	// used returns the namespace of a run in which a command was executed.
	used := func(name string, args ...string) (ns string) {
		p := runs.Start(t, box)
		var out bytes.Buffer
		x, err := p.Exec(testkit.Deadline(t), sandbox.WithExtraFiles(exe), sandbox.WithEnv(testkit.HelperEnv), sandbox.WithStdout(&out),
			sandbox.WithCommand("/proc/self/fd/3", testkit.HelperArgs(name, args...)...))
		require.NoError(t, err)
		_, err = x.Wait()
		require.NoError(t, err)
		require.NoError(t, p.Close())
		return out.String()[strings.LastIndex(out.String(), "net:["):]
	}
	again := func(name string, args ...string) bool {
		seen := map[string]bool{}
		for range 12 {
			ns := used(name, args...)
			if seen[ns] {
				return true
			}
			seen[ns] = true
		}
		return false
	}
	require.True(t, again("network-look"), "the control")
	if !testkit.Kernel(5, 14) {
		return // what is new can't be told from what is not
	}
	go func() {
		for f := acceptFile(l, true); f != nil; f = acceptFile(l, true) {
			t.Cleanup(func() { f.Close() })
		}
	}()
	require.False(t, again("network-hand-on", "open", "/proc/net/dev", "/srv/accomplice"))
}

// A run whose user has its /dev can't make the host take something else for a terminal, or wait.
func TestAttackRootlessTerminal(t *testing.T) {
	for _, trick := range []string{"mkfifo /tmp/f; ln -s /tmp/f /dev/ptmx", "ln -s /dev/zero /dev/ptmx", "ln -s /dev/tty /dev/ptmx", "ln -s /proc/self/fd/0 /dev/ptmx", "touch /dev/ptmx", ":"} {
		p := runs.Start(t, sandbox.New(sandbox.WithHold(), sandbox.WithUser(0, 0)))
		x, err := p.Exec(testkit.Deadline(t), sandbox.WithCommand("sh", "-c", "rm -f /dev/ptmx 2>/dev/null && { "+trick+"; }; test -c /dev/ptmx && test $(stat -Lc %t:%T /dev/ptmx) = 5:2"))
		require.NoError(t, err)
		_, err = x.Wait()
		still := err == nil
		began := time.Now()
		x, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"), sandbox.WithTerminal(1, 1))
		require.Equal(t, still, err == nil, "%s: %v", trick, err)
		require.Less(t, time.Since(began), testkit.Patience/2)
		if err == nil {
			_, err = x.Wait()
			require.NoError(t, err)
		}
	}
}
