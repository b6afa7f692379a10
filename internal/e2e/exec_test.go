//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// session starts a run without a command.
func session(t testing.TB, opts ...sandbox.Option) *sandbox.Process {
	t.Helper()
	return runs.Start(t, sandbox.New(opts...).With(sandbox.WithHold()))
}

func script(text string, opts ...sandbox.Option) []sandbox.Option {
	return append([]sandbox.Option{sandbox.WithCommand("/bin/sh", "-c", text)}, opts...)
}

// execute starts a command in a run.
func execute(t testing.TB, p *sandbox.Process, opts ...sandbox.Option) *sandbox.Process {
	t.Helper()
	x, err := p.Exec(testkit.Deadline(t), opts...)
	require.NoError(t, err)
	return x
}

// inRun returns the output of a script that Exec executes, without the space around it.
func inRun(t testing.TB, p *sandbox.Process, text string, opts ...sandbox.Option) string {
	t.Helper()
	var out bytes.Buffer
	_, err := execute(t, p, script(text, append(opts, sandbox.WithStdout(&out), sandbox.WithStderr(&out))...)...).Wait()
	require.NoError(t, err, "%s", out.String())
	return strings.TrimSpace(out.String())
}

// whereabouts prints what all processes of a run have in common.
const whereabouts = `for n in user pid mnt net ipc uts time; do readlink /proc/self/ns/$n; done
id; hostname; ulimit -a; umask; cat /proc/self/cgroup; pwd; env | grep -v ^_= | sort; cat /proc/self/oom_score_adj
grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups|Uid|Gid|Sig(Blk|Ign|Cgt))' /proc/self/status
ls -l /proc/self/fd | wc -l; ls -a / /dev /tmp /home; cut -d' ' -f5- /proc/self/mountinfo; cat /proc/self/timens_offsets
`

// Whatever a run is like, a command of Exec finds there what the run's own command does.
func TestRootlessExecIsThere(t *testing.T) {
	for name, s := range execKinds(t) {
		t.Run(name, func(t *testing.T) {
			own, w, err := os.Pipe()
			require.NoError(t, err)
			defer own.Close()
			p := runs.Start(t, s.With(script(whereabouts+"echo; echo end; exec sleep 1000", sandbox.WithStdout(w), sandbox.WithStderr(w))...))
			w.Close()
			var want strings.Builder
			for lines := bufio.NewScanner(own); lines.Scan() && lines.Text() != "end"; {
				want.WriteString(lines.Text() + "\n")
			}
			require.Equal(t, strings.TrimSpace(want.String()), inRun(t, p, whereabouts))
			require.Equal(t, "1", inRun(t, p, "echo 1 >/tmp/kept; cat /tmp/kept"))
			require.Equal(t, "1", inRun(t, p, "cat /tmp/kept"))
		})
	}
}

// It has the run's scratch and its place on a private network.
func TestRootlessExecShares(t *testing.T) {
	t.Parallel()
	kept, private := newScratch(t, sandbox.MiB), newNetwork(t)
	p := session(t, sandbox.WithScratch("/kept", kept), sandbox.WithNetwork(private.As("box")))
	require.Empty(t, inRun(t, p, "echo 1 >/kept/a"))
	data, err := fs.ReadFile(kept.FS(), "a")
	require.NoError(t, err)
	require.Equal(t, "1\n", string(data))
	require.Contains(t, inRun(t, p, "cat /proc/net/route"), "eth0")
}

// execKinds are sandboxes of all kinds that work here.
func execKinds(t *testing.T) map[string]*sandbox.Sandbox {
	all := map[string]*sandbox.Sandbox{
		"default":       sandbox.New(),
		"prepared":      sandbox.New(sandbox.WithPrepared(1)),
		"uid 0":         sandbox.New(sandbox.WithUser(0, 0)),
		"other ids":     sandbox.New(sandbox.WithUser(7, 8), sandbox.WithHostname("other")),
		"capabilities":  sandbox.New(sandbox.WithCapabilities("CAP_NET_BIND_SERVICE", "CAP_SYS_PTRACE")),
		"powerful root": sandbox.New(sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_CHOWN", "CAP_SYS_PTRACE")),
		"no filter":     sandbox.New(sandbox.WithoutSeccomp()),
		"set-id":        sandbox.New(sandbox.WithSetID(), sandbox.WithNetwork(sandbox.NetworkNew)),
		"command":       sandbox.New(sandbox.WithEnv("A=b"), sandbox.WithDir("/tmp"), sandbox.WithRlimit("nofile", 128, 128), sandbox.WithFile("/etc/a", []byte("b"), 0o644), sandbox.WithFile("/tmp/b", []byte("b"), 0o644)),
		"host network":  sandbox.New(sandbox.WithNetwork(sandbox.NetworkHost)),
	}
	if _, err := os.Stat("/proc/self/ns/time"); err == nil {
		all["time offset"] = sandbox.New(sandbox.WithTimeOffset(time.Hour))
	}
	if testkit.Kernel(5, 11) && os.Getenv("SANDBOX_TEST_CONFIG") != "docker" {
		all["writable root"] = sandbox.New(sandbox.WithWritableRoot(sandbox.MiB))
	}
	if testkit.Controller("pids") && testkit.AsRoot() {
		all["limits"] = sandbox.New(sandbox.WithPIDs(20), sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCPUs(1))
	}
	if testkit.AsRoot() {
		all["groups"] = sandbox.New(sandbox.WithGroups(5, 6))
	}
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		all["no user namespace"] = runs.HostUser(sandbox.New())
	}
	return all
}

// So it does in roots of directories, layers, and a scratch.
func TestRootlessExecRoots(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	root := testkit.BusyboxRoot(t)
	kinds := map[string][]sandbox.Option{
		"directory": {sandbox.WithRootfs(sandbox.DirRootfs(root))},
		"layers":    {runs.Layers(testkit.BusyboxRoot(t, "/other"), root)},
	}
	if testkit.AsRoot() && testkit.Kernel(6, 3) {
		kinds["scratch"] = []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithScratchRoot(newScratch(t, sandbox.MiB))}
	}
	for name, opts := range kinds {
		const there = "id; pwd; ls -a / /bin /dev; cat /proc/self/cgroup"
		want := runs.Output(t, runs.Shell(there, opts...))
		p := session(t, opts...)
		require.Equal(t, want, inRun(t, p, there), name)
		require.Equal(t, "1", inRun(t, p, "echo 1 >/tmp/kept; cat /tmp/kept"), name)
		require.NoError(t, p.Close())
	}
}

func TestRootlessExecResults(t *testing.T) {
	t.Parallel()
	p := session(t, sandbox.WithEnv("A=run", "B=run"), sandbox.WithDir("/tmp"))
	extra, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	var out, errs bytes.Buffer
	x := execute(t, p, script("cat; cat <&3; pwd; echo $A $B; ulimit -n; echo err >&2; exit 3", sandbox.WithStdin(strings.NewReader("in\n")), sandbox.WithStdout(&out), sandbox.WithStderr(&errs),
		sandbox.WithExtraFiles(extra), sandbox.WithEnv("A=own"), sandbox.WithDir("/usr"), sandbox.WithRlimit("nofile", 77, 77))...)
	extra.Close()
	require.Positive(t, x.PID())
	_, err = w.WriteString("extra\n")
	require.NoError(t, err)
	w.Close()
	result, err := x.Wait()
	require.Equal(t, 3, runs.ExitError(t, err).ExitCode)
	require.Equal(t, sandbox.Exited, result.Reason)
	require.Equal(t, "in\nextra\n/usr\nown run\n77\n", out.String())
	require.Equal(t, "err\n", errs.String())
	require.Positive(t, result.Usage.MemoryPeak)
	require.Contains(t, result.Usage.Uncounted, "PIDsPeak")
	require.ErrorIs(t, x.Kill(), os.ErrProcessDone)
	require.ErrorIs(t, x.Signal(syscall.SIGTERM), os.ErrProcessDone)

	x = execute(t, p, script("kill -SEGV $$")...)
	_, err = x.Wait()
	require.Equal(t, syscall.SIGSEGV, runs.ExitError(t, err).Signal)
	require.Equal(t, "/tmp", inRun(t, p, "pwd"), "the next one has what the run has")

	_, err = execute(t, p, script("sleep 1000", sandbox.WithTimeout(10*time.Millisecond))...).Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	var some bytes.Buffer
	_, err = execute(t, p, script("yes", sandbox.WithOutputLimit(100), sandbox.WithStdout(&some))...).Wait()
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	require.Equal(t, 100, some.Len())
	_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("no such"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"), sandbox.WithDir("/none"))
	require.Equal(t, "WithDir", runs.SetupError(t, err).Stage)
	require.Equal(t, "fine", inRun(t, execute(t, p, sandbox.WithCommand("sleep", "1000")), "echo fine"), "Exec of an Exec is in the run")
	require.NoError(t, p.Close())
	result, err = p.Wait()
	require.NoError(t, err)
	require.Equal(t, sandbox.Result{Usage: result.Usage}, *result)
	_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"))
	require.ErrorIs(t, err, os.ErrProcessDone)
	require.Zero(t, p.PID())
}

// Nothing that the command has started is left after Kill, a timeout or its context's end, and
// nothing else of the run is gone.
func TestRootlessExecKill(t *testing.T) {
	t.Parallel()
	other := testkit.ALongTime()
	p := session(t)
	execute(t, p, sandbox.WithCommand("sleep", other))
	for name, end := range map[string]func(x *sandbox.Process, cancel func()){
		"kill":    func(x *sandbox.Process, _ func()) { require.NoError(t, x.Kill()) },
		"close":   func(x *sandbox.Process, _ func()) { require.NoError(t, x.Close()) },
		"cancel":  func(_ *sandbox.Process, cancel func()) { cancel() },
		"timeout": func(*sandbox.Process, func()) {},
	} {
		mark := testkit.ALongTime()
		ctx, cancel := context.WithCancel(testkit.Deadline(t))
		opts := script("trap '' TERM HUP; sleep "+mark+" & (sleep "+mark+" & sleep "+mark+") & set -m; sleep "+mark+" & (setsid sleep "+mark+"; :) & wait; :", sandbox.WithOutputLimit(1000))
		if name == "timeout" {
			opts = append(opts, sandbox.WithTimeout(testkit.Patience/100))
		}
		x, err := p.Exec(ctx, opts...)
		require.NoError(t, err)
		if name != "timeout" {
			testkit.Eventually(t, "all are there", func() bool { return len(testkit.Running(mark)) == 5 })
		}
		end(x, cancel)
		_, err = x.Wait()
		require.Equal(t, map[string]sandbox.Reason{"kill": sandbox.Signaled, "close": sandbox.Signaled, "cancel": sandbox.Canceled, "timeout": sandbox.TimedOut}[name], runs.ExitError(t, err).Reason)
		testkit.RequireGone(t, mark)
		cancel()
	}
	require.Len(t, testkit.Running(other), 1)
}

// What a command leaves lives on, and is reaped by the run.
func TestRootlessExecLeaves(t *testing.T) {
	t.Parallel()
	p, mark := session(t), testkit.ALongTime()
	require.Empty(t, inRun(t, p, "sleep "+mark+" & for i in 1 2 3 4 5; do (sleep 0.01 &); done"))
	testkit.Eventually(t, "it is executed", func() bool { return len(testkit.Running(mark)) == 1 })
	testkit.Eventually(t, "orphans are reaped", func() bool { return inRun(t, p, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || :") == "" })
	require.NoError(t, p.Close())
	testkit.RequireGone(t, mark)
}

// The end of the run, of whatever kind, is that of its commands, with its reason.
func TestRootlessExecRunEnds(t *testing.T) {
	t.Parallel()
	input := func() *os.File {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		t.Cleanup(func() { r.Close(); w.Close() })
		return r
	}
	wait := sandbox.WithCommand("cat")
	for name, test := range map[string]struct {
		opts []sandbox.Option
		end  func(p *sandbox.Process, cancel func())
		is   error
		says string
	}{
		"kill":    {[]sandbox.Option{wait}, func(p *sandbox.Process, _ func()) { _ = p.Kill() }, nil, "the run has ended (signal: killed)"},
		"close":   {[]sandbox.Option{sandbox.WithHold()}, func(p *sandbox.Process, _ func()) { _ = p.Close() }, nil, "the run has ended (signal: killed)"},
		"exit":    {[]sandbox.Option{wait}, func(p *sandbox.Process, _ func()) { _ = p.Signal(syscall.SIGTERM) }, nil, "the run has ended (signal: killed)"},
		"cancel":  {[]sandbox.Option{wait}, func(_ *sandbox.Process, cancel func()) { cancel() }, context.Canceled, "the run has ended (signal: killed)"},
		"timeout": {[]sandbox.Option{sandbox.WithHold(), sandbox.WithTimeout(testkit.Patience / 50)}, func(*sandbox.Process, func()) {}, sandbox.ErrTimeout, "the run has ended: timed out (signal: killed)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(testkit.Deadline(t))
			defer cancel()
			s := sandbox.New(test.opts...)
			if name != "close" && name != "timeout" {
				s = s.With(sandbox.WithStdin(input()))
			}
			p, err := s.Start(ctx)
			require.NoError(t, err)
			var all []*sandbox.Process
			for range 3 {
				all = append(all, execute(t, p, sandbox.WithCommand("sleep", "1000")))
			}
			test.end(p, cancel)
			for _, x := range all {
				_, err := x.Wait()
				require.Equal(t, sandbox.RunEnded, runs.ExitError(t, err).Reason)
				require.ErrorIs(t, err, sandbox.ErrRunEnded)
				require.ErrorContains(t, err, test.says)
				if test.is != nil {
					require.ErrorIs(t, err, test.is)
				}
			}
			_, _ = p.Wait()
			_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"))
			require.ErrorIs(t, err, os.ErrProcessDone)
		})
	}
}

// A run may end at any moment of an Exec, and the Exec's context too.
func TestRootlessExecRaces(t *testing.T) {
	t.Parallel()
	for i := range 30 {
		p := session(t)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for {
					x, err := p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"))
					if err == nil {
						_, err = x.Wait()
					}
					if err != nil {
						if !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, sandbox.ErrRunEnded) {
							t.Errorf("run that ends: %v", err)
						}
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
		require.NoError(t, p.Close())
		all.Wait()
	}
	p := session(t)
	for i := range 50 {
		ctx, cancel := context.WithTimeout(testkit.Deadline(t), time.Duration(i)*100*time.Microsecond)
		x, err := p.Exec(ctx, sandbox.WithCommand("sleep", "1000"))
		if err == nil {
			_, err = x.Wait()
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		cancel()
	}
	require.Equal(t, "fine", inRun(t, p, "echo fine"))
}

func TestRootlessExecOptions(t *testing.T) {
	t.Parallel()
	p := session(t, sandbox.WithFile("/tmp/a", []byte("a"), 0o644))
	for name, o := range map[string]sandbox.Option{
		"WithHold": sandbox.WithHold(), "WithHostname": sandbox.WithHostname("x"), "WithUser": sandbox.WithUser(1, 1), "WithGroups": sandbox.WithGroups(1),
		"WithNetwork": sandbox.WithNetwork(sandbox.NetworkHost), "WithTimeOffset": sandbox.WithTimeOffset(1), "WithoutUserNamespace": sandbox.WithoutUserNamespace(),
		"WithCapabilities": sandbox.WithCapabilities("CAP_CHOWN"), "WithoutSeccomp": sandbox.WithoutSeccomp(), "WithSetID": sandbox.WithSetID(),
		"WithMemory": sandbox.WithMemory(sandbox.MiB), "WithPIDs": sandbox.WithPIDs(5), "WithCPUs": sandbox.WithCPUs(1), "WithCPUTime": sandbox.WithCPUTime(1), "WithCgroupParent": sandbox.WithCgroupParent("/x"),
		"WithTmpfs": sandbox.WithTmpfs("/x", 1), "WithBind": sandbox.WithBind("/a", "/b"), "WithReadOnlyBind": sandbox.WithReadOnlyBind("/a", "/b"), "WithFile": sandbox.WithFile("/tmp/a", []byte("a"), 0o644),
		"WithRootfs": sandbox.WithRootfs(sandbox.DirRootfs("/x")), "WithWritableRoot": sandbox.WithWritableRoot(1), "WithScratchRoot": sandbox.WithScratchRoot(nil), "WithPrepared": sandbox.WithPrepared(1),
		"WithPublish": sandbox.WithPublish("127.0.0.1:0", 80),
	} {
		_, err := p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"), o)
		var wrong *sandbox.OptionError
		require.ErrorAs(t, err, &wrong, name)
		require.Equal(t, name, wrong.Option)
	}
	_, err := p.Exec(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithCommand")
	_, err = sandbox.New(sandbox.WithHold(), sandbox.WithStdout(io.Discard)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithStdout")
}

func TestExecLimits(t *testing.T) {
	testkit.Need(t, "cgroup memory")
	p := session(t, append(runs.HelperOptions(), sandbox.WithMemory(32*sandbox.MiB), sandbox.WithPIDs(10))...)
	_, err := execute(t, p, sandbox.WithCommand("/helper", testkit.HelperArgs("alloc", "200")...)).Wait()
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	_, err = execute(t, p, script("exit 1")...).Wait()
	require.Equal(t, sandbox.Exited, runs.ExitError(t, err).Reason, "what was counted before is another's")
	_, err = execute(t, p, script("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.3 & done; exit 1")...).Wait()
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.OOMKills)
	require.NoError(t, p.Close())
}

// What the kernel kills for the memory of one command does not count for those that live on and
// end with their run.
func TestExecBesideOutOfMemory(t *testing.T) {
	testkit.Need(t, "cgroup memory")
	p := session(t, append(runs.HelperOptions(), sandbox.WithMemory(32*sandbox.MiB))...)
	beside := execute(t, p, sandbox.WithCommand("sleep", "1000"))
	_, err := execute(t, p, sandbox.WithCommand("/helper", testkit.HelperArgs("alloc", "200")...)).Wait()
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
	require.NoError(t, p.Kill())
	_, err = beside.Wait()
	require.Equal(t, sandbox.RunEnded, runs.ExitError(t, err).Reason)
	require.NotErrorIs(t, err, sandbox.ErrOutOfMemory)
}

// gated is a writer that waits for a channel to be closed.
type gated chan struct{}

func (g gated) Write(b []byte) (int, error) { <-g; return len(b), nil }

// What the run has found of its output after its end is not for those who ask for a command's end
// at the same time (go test -race).
func TestRootlessExecRunEndsBeforeOutput(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	open := make(gated)
	p := runs.Start(t, sandbox.New(script("read x; head -c 60000 /dev/zero", sandbox.WithStdin(r), sandbox.WithStdout(open), sandbox.WithOutputLimit(50_000))...))
	x := execute(t, p, sandbox.WithCommand("sleep", "1000"))
	time.AfterFunc(testkit.Patience/100, func() { close(open) })
	require.NoError(t, w.Close())
	_, err := x.Wait()
	require.Equal(t, sandbox.RunEnded, runs.ExitError(t, err).Reason)
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
}

// A run without a command has none that gets a signal, from its first moment on.
func TestRootlessHoldSignal(t *testing.T) {
	t.Parallel()
	for range 20 {
		p := session(t)
		require.ErrorIs(t, p.Signal(syscall.SIGTERM), os.ErrProcessDone)
		require.NoError(t, p.Close())
	}
}

func TestExecPaused(t *testing.T) {
	testkit.Need(t, "freezer")
	p := session(t)
	r, w := io.Pipe()
	x := execute(t, p, script("while echo; do sleep 0.01; done", sandbox.WithStdout(w))...)
	lines := bufio.NewReader(r)
	_, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.NoError(t, x.Pause(), "of the whole run")
	_, err = p.Exec(testkit.Deadline(t), sandbox.WithCommand("true"))
	runs.SetupError(t, err, "paused", "Resume")
	require.NoError(t, p.Resume())
	require.Equal(t, "fine", inRun(t, p, "echo fine"))
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	defer w.Close()
	require.NoError(t, x.Close())
	require.NoError(t, p.Pause())
	require.NoError(t, p.Close())
}

// A thousand commands leave nothing.
func TestRootlessExecLeavesNothing(t *testing.T) {
	p, err := sandbox.New(sandbox.WithHold()).Start(t.Context()) // it takes longer than others
	require.NoError(t, err)
	defer p.Close()
	require.Equal(t, "warm", inRun(t, p, "echo warm"))
	before := testkit.TakeInventory()
	n := 1000
	if testkit.InGuest || testing.Short() {
		n = 100
	}
	for i := range n {
		if i%10 == 0 {
			_, err := p.Exec(testkit.Deadline(t), sandbox.WithCommand("/none"))
			require.ErrorIs(t, err, fs.ErrNotExist)
			continue
		}
		_, err := execute(t, p, sandbox.WithCommand("true"), sandbox.WithStdout(io.Discard)).Wait()
		require.NoError(t, err)
	}
	require.Empty(t, before.AwaitNothingAdded(testkit.Patience))
	require.Equal(t, "2", inRun(t, p, "set -- /proc/[0-9]*; echo $#"), "init, and this one")
}
