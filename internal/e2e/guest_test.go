//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/internal/testkit/walltest"
)

func init() { testkit.AddHelper("forge", forgeHelper) }

// needGVisor skips the test where gVisor is not, which no package of Debian has.
func needGVisor(t *testing.T) {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "runsc")
}

// guests returns a sandbox of a shell in a cell of gVisor.
func guests(t *testing.T) (*sandbox.Cell, func(script string, opts ...sandbox.Option) *sandbox.Sandbox) {
	t.Helper()
	c, in := newWalled(t, sandbox.CellRuntime("runsc"))
	return c, func(script string, opts ...sandbox.Option) *sandbox.Sandbox {
		return runs.Shell(script, append([]sandbox.Option{in}, opts...)...)
	}
}

// A run has a kernel of its own, nothing but its root, and a loopback; its user, environment,
// directory, host name and input are what options say.
func TestGuest(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	var host unix.Utsname
	require.NoError(t, unix.Uname(&host))
	version := runs.Output(t, shell("cat /proc/version"))
	require.NotContains(t, version, unix.ByteSliceToString(host.Version[:]))
	require.Equal(t, "1000 1000 guest /tmp b in", runs.Output(t, shell(`echo $(id -u) $(id -g) $(hostname) $PWD $A $(cat)`,
		sandbox.WithHostname("guest"), sandbox.WithDir("/tmp"), sandbox.WithEnv("A=b"), sandbox.WithStdin(strings.NewReader("in")))))
	require.Equal(t, "lo:", runs.Output(t, shell(`awk 'NR > 2 { print $1 }' /proc/net/dev`)))
	require.Equal(t, "0000000000000000 0000000000000000", runs.Output(t, shell(`echo $(awk '/^Cap(Eff|Bnd)/ { print $2 }' /proc/self/status)`)))
	require.Equal(t, "0 0000000000000000 0000000000000000", runs.Output(t, shell(`echo $(id -u) $(awk '/^Cap(Eff|Bnd)/ { print $2 }' /proc/self/status)`, sandbox.WithUser(0, 0))))
	require.Equal(t, "no\nno", runs.Output(t, shell(`ls /.sandbox >/dev/null 2>&1 || echo no; touch /usr/new 2>/dev/null || echo no`)))
}

// How a run ended is true: codes, signals, and what limits and callers do.
func TestGuestEnds(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	ctx := testkit.Deadline(t)
	cell, shell := guests(t)
	for script, want := range map[string]sandbox.Result{
		"exit 7": {ExitCode: 7}, "exit 137": {ExitCode: 137}, "kill -9 $$": {ExitCode: -1, Signal: syscall.SIGKILL}, "kill -TERM $$": {ExitCode: -1, Signal: syscall.SIGTERM},
	} {
		_, err := shell(script).Run(ctx)
		exit := runs.ExitError(t, err)
		require.Equal(t, want.ExitCode, exit.ExitCode, script)
		require.Equal(t, want.Signal, exit.Signal, script)
	}
	_, err := shell("").With(sandbox.WithCommand("no-such-command")).Run(ctx)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = shell("true", sandbox.WithDir("/no/such")).Run(ctx)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = shell("sleep 1000", sandbox.WithTimeout(time.Second)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	_, err = shell("yes", sandbox.WithOutputLimit(1<<16)).Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	ctx = testkit.Deadline(t) // each of these starts a kernel
	begun, cancel := context.WithCancel(ctx)
	p, err := shell("sleep 1000").Start(begun)
	require.NoError(t, err)
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, context.Canceled)

	p = runs.Start(t, shell("sleep 1000"))
	runs.SetupError(t, p.Pause(), "kernel of its own")
	require.NoError(t, p.Kill())
	_, err = p.Wait()
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	p = runs.Start(t, shell("sleep 1000"))
	require.NoError(t, cell.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
	_, err = shell("true").Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

// Each option of a sandbox is accepted in a cell of gVisor, or is an error that names it. The
// script shows what a run sees of those that are accepted; limits have tests of their own.
func TestGuestOptions(t *testing.T) {
	t.Parallel()
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	var scratch sandbox.Scratch
	dir := testkit.OpenDir(t)
	require.NoError(t, os.Chmod(dir, 0o777)) // owners are the host's
	refused := map[string]sandbox.Option{
		"WithHold": sandbox.WithHold(), "WithTerminal": sandbox.WithTerminal(24, 80), "WithExtraFiles": sandbox.WithExtraFiles(os.Stdin), "WithPIDs": sandbox.WithPIDs(10),
		"WithRlimit": sandbox.WithRlimit("core", 0, 0), "WithTimeOffset": sandbox.WithTimeOffset(time.Hour), "WithNetwork": sandbox.WithNetwork(sandbox.Private()),
		"WithCapabilities": sandbox.WithCapabilities("CAP_KILL"), "WithSeccomp": sandbox.WithSeccomp(profile), "WithRefusals": sandbox.WithRefusals(func(sandbox.Refusal) {}),
		"WithPrepared": sandbox.WithPrepared(1), "WithScratch": sandbox.WithScratch("/s", &scratch), "WithReadOnlyScratch": sandbox.WithReadOnlyScratch("/s", &scratch),
		"WithScratchRoot": sandbox.WithScratchRoot(&scratch), "WithFS": sandbox.WithFS("/fs", fstest.MapFS{}),
	}
	elsewhere := map[string]sandbox.Option{ // as in any cell that was made for others
		"WithoutUserNamespace": sandbox.WithoutUserNamespace(), "WithCgroupParent": sandbox.WithCgroupParent("/x"), "WithPublish": sandbox.WithPublish("127.0.0.1:0", 80),
	}
	taken := map[string]sandbox.Option{
		"WithCommand": sandbox.WithCommand("sh", "-ec", "cat; echo $A $(pwd) $(hostname) $(id -u) $(id -G); cat /file; touch /job/new /tmpfs/new; ls /ro; if touch /ro/x 2>/dev/null; then exit 9; fi; nproc"),
		"WithEnv":     sandbox.WithEnv("A=a"), "WithDir": sandbox.WithDir("/tmp"), "WithStdin": sandbox.WithStdin(strings.NewReader("in\n")), "WithStdout": sandbox.WithStdout(nil), "WithStderr": sandbox.WithStderr(nil),
		"WithTimeout": sandbox.WithTimeout(testkit.Patience), "WithStopSignal": sandbox.WithStopSignal(unix.SIGTERM, time.Second), "WithWaitDelay": sandbox.WithWaitDelay(testkit.Patience),
		"WithOutputLimit": sandbox.WithOutputLimit(sandbox.MiB), "WithMemory": sandbox.WithMemory(sandbox.GiB), "WithSwap": sandbox.WithSwap(0), "WithCPUs": sandbox.WithCPUs(1), "WithCPUWeight": sandbox.WithCPUWeight(50),
		"WithCPUSet": sandbox.WithCPUSet("0"), "WithCPUTime": sandbox.WithCPUTime(testkit.Patience), "WithIO": sandbox.WithIO(sandbox.IOLimit{Path: "/var/tmp", ReadBytes: sandbox.GiB}), "WithHostname": sandbox.WithHostname("box"),
		"WithUser": sandbox.WithUser(1234, 1234), "WithGroups": sandbox.WithGroups(1235), "WithRootfs": sandbox.WithRootfs(sandbox.HostRootfs()), "WithWritableRoot": sandbox.WithWritableRoot(sandbox.MiB),
		"WithBind": sandbox.WithBind(dir, "/job"), "WithReadOnlyBind": sandbox.WithReadOnlyBind(dir, "/ro"), "WithTmpfs": sandbox.WithTmpfs("/tmpfs", sandbox.MiB), "WithFile": sandbox.WithFile("/file", []byte("file\n"), 0o644),
		"WithoutSeccomp": sandbox.WithoutSeccomp(), "WithSetID": nil, "WithStdinPipe": nil, "WithStdoutPipe": nil, "WithStderrPipe": nil, // below
	}
	names := slices.DeleteFunc(options(t), func(name string) bool { return name == "WithCell" })
	require.ElementsMatch(t, names, slices.Concat(slices.Collect(maps.Keys(refused)), slices.Collect(maps.Keys(elsewhere)), slices.Collect(maps.Keys(taken))))

	needGVisor(t)
	ctx := testkit.Deadline(t)
	_, shell := guests(t)
	real, err := sandbox.NewScratch(sandbox.MiB)
	require.NoError(t, err)
	defer real.Close()
	for name, again := range map[string]sandbox.Option{"WithScratch": sandbox.WithScratch("/s", real), "WithReadOnlyScratch": sandbox.WithReadOnlyScratch("/s", real), "WithScratchRoot": sandbox.WithScratchRoot(real)} {
		refused[name] = again
	}
	for name, o := range refused {
		_, err := shell("true", o).Run(ctx)
		var wrong *sandbox.OptionError
		require.ErrorAs(t, err, &wrong, name)
		require.Regexp(t, "sandbox: "+name+": .*in a cell of runsc.*: .*leave it out", err.Error())
	}
	for name, o := range elsewhere {
		_, err := shell("true", o).Run(ctx)
		var wrong *sandbox.OptionError
		require.ErrorAs(t, err, &wrong, name)
		require.ErrorContains(t, err, name)
	}
	var all []sandbox.Option
	for _, o := range taken {
		all = append(all, o)
	}
	require.Equal(t, "in\na /tmp box 1234 1234 1235\nfile\nnew\n1", runs.Output(t, shell("", all...)))
	p := runs.Start(t, shell("cat; echo err >&2", sandbox.WithSetID(), sandbox.WithStdinPipe(), sandbox.WithStdoutPipe(), sandbox.WithStderrPipe()))
	_, err = io.WriteString(p.StdinPipe(), "in")
	require.NoError(t, err)
	require.NoError(t, p.StdinPipe().Close())
	for from, want := range map[io.Reader]string{p.StdoutPipe(): "in", p.StderrPipe(): "err\n"} {
		b, err := io.ReadAll(from)
		require.NoError(t, err)
		require.Equal(t, want, string(b))
	}
	_, err = p.Wait()
	require.NoError(t, err)
}

// options returns the names of all options of a sandbox.
func options(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("../../*.go")
	require.NoError(t, err)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil && f.Name.Name == "sandbox" && !strings.HasSuffix(file, "_test.go") && strings.HasPrefix(d.Name.Name, "With") {
				names = append(names, d.Name.Name)
			}
		}
	}
	require.NotEmpty(t, names)
	return names
}

// Limits of a run change while it lives, and what it uses is counted.
func TestGuestUpdate(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	p := runs.Start(t, shell("cat; head -c 1G /dev/zero | tail", sandbox.WithMemory(sandbox.GiB), sandbox.WithStdinPipe()))
	used, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, used.MemoryPeak)
	var wrong *sandbox.OptionError
	require.ErrorAs(t, p.Update(sandbox.WithPIDs(10)), &wrong)
	require.NoError(t, p.Update(sandbox.WithMemory(256*sandbox.MiB)))
	require.NoError(t, p.StdinPipe().Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)

	p = runs.Start(t, shell("sleep 1000"))
	require.NoError(t, p.Update(sandbox.WithTimeout(time.Millisecond)))
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)
}

// Signals reach the command, and WithStopSignal ends it gently.
func TestGuestSignals(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	begun, cancel := context.WithCancel(testkit.Deadline(t))
	defer cancel()
	p, err := shell("trap 'echo one' USR1; trap 'echo term; exit 3' TERM; echo; while :; do sleep 0.01; done", sandbox.WithStdoutPipe(),
		sandbox.WithStopSignal(unix.SIGTERM, testkit.Patience)).Start(begun)
	require.NoError(t, err)
	lines := bufio.NewScanner(p.StdoutPipe())
	require.True(t, lines.Scan())
	require.NoError(t, p.Signal(unix.SIGUSR1))
	require.True(t, lines.Scan())
	require.Equal(t, "one", lines.Text())
	cancel()
	require.True(t, lines.Scan())
	require.Equal(t, "term", lines.Text())
	result, err := p.Wait()
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, result.ExitCode)
	require.ErrorIs(t, p.Signal(unix.SIGUSR1), os.ErrProcessDone)
}

// Further commands are in the run, and are what options say.
func TestGuestExec(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	ctx := testkit.Deadline(t)
	p := runs.Start(t, shell("echo >/tmp/there; exec sleep 1000", sandbox.WithEnv("A=a", "B=b"), sandbox.WithStopSignal(unix.SIGTERM, testkit.Patience)))
	testkit.Eventually(t, "the run is ready", func() bool {
		x, err := p.Exec(ctx, sandbox.WithCommand("test", "-e", "/tmp/there"))
		if err != nil {
			return false
		}
		_, err = x.Wait()
		return err == nil
	})
	require.Equal(t, "1000 1000 a c /tmp in 0000000000000000 0000000000000000", inRun(t, p, `cd $PWD; echo $(id -u) $(id -g) $A $B $PWD $(cat) $(awk '/^Cap(Prm|Bnd)/ { print $2 }' /proc/self/status)`,
		sandbox.WithEnv("B=c"), sandbox.WithDir("/tmp"), sandbox.WithStdin(strings.NewReader("in"))))
	require.Equal(t, "1", inRun(t, p, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^1000$"))
	_, err := p.Exec(ctx, sandbox.WithCommand("no-such-command"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = p.Exec(ctx, sandbox.WithCommand("true"), sandbox.WithTerminal(24, 80))
	var wrong *sandbox.OptionError
	require.ErrorAs(t, err, &wrong)
	_, err = execute(t, p, script("exit 4")...).Wait()
	require.Equal(t, 4, runs.ExitError(t, err).ExitCode)
	_, err = execute(t, p, script("sleep 1000", sandbox.WithTimeout(100*time.Millisecond), sandbox.WithStopSignal(unix.SIGTERM, 0))...).Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	// What it has started ends with it, if it is killed or asked to end; nothing else does.
	left := "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^2000$; true"
	for name, end := range map[string]func(x *sandbox.Process) error{"kill": (*sandbox.Process).Kill, "close": (*sandbox.Process).Close} {
		x := execute(t, p, script("sleep 2000 & setsid sleep 2000 & trap 'exit 5' TERM; echo; while :; do sleep 0.01; done", sandbox.WithStdoutPipe())...)
		_, err := bufio.NewReader(x.StdoutPipe()).ReadString('\n')
		require.NoError(t, err)
		testkit.Eventually(t, name+": all are there", func() bool { return inRun(t, p, left) == "2" })
		require.NoError(t, end(x))
		result, err := x.Wait()
		runs.ExitError(t, err)
		require.Equal(t, map[string]int{"kill": -1, "close": 5}[name], result.ExitCode, name)
		testkit.Eventually(t, name+": none is left", func() bool { return inRun(t, p, left) == "0" })
	}

	x := execute(t, p, script("sleep 1000")...)
	require.NoError(t, p.Kill())
	_, err = x.Wait()
	require.Equal(t, sandbox.RunEnded, runs.ExitError(t, err).Reason)
	_, err = p.Wait()
	require.Equal(t, sandbox.Signaled, runs.ExitError(t, err).Reason)
	_, err = p.Exec(ctx, sandbox.WithCommand("true"))
	require.ErrorIs(t, err, os.ErrProcessDone)
}

// A run of root can't report an end of its own making: PID 1's descriptor is out of its reach, by
// ways that reach the one of a child.
func TestAttackForge(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testForge(t, "child: link open")
}

func TestAttackGuestForge(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, in := newWalled(t, sandbox.CellRuntime("runsc"))
	testForge(t, "child: link open getfd trace", in, sandbox.WithSetID()) // which lets it trace
}

func testForge(t *testing.T, child string, opts ...sandbox.Option) {
	var out bytes.Buffer
	_, err := runs.Helper("forge").With(opts...).With(sandbox.WithUser(0, 0), sandbox.WithStdout(&out)).Run(testkit.Deadline(t))
	require.Equal(t, 7, runs.ExitError(t, err).ExitCode)
	require.True(t, strings.HasPrefix(out.String(), child), out.String())
	require.True(t, strings.HasSuffix(out.String(), "\nPID 1:\n"), out.String())
}

// forgeHelper prints by which ways it reaches descriptor 3 of a child, and of PID 1, and exits with
// status 7.
func forgeHelper([]string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command("sleep", "1000")
	child.ExtraFiles = []*os.File{w}
	if err := child.Start(); err != nil {
		return err
	}
	for _, of := range []struct {
		name string
		pid  int
	}{{"child", child.Process.Pid}, {"PID 1", 1}} {
		fmt.Println(strings.Join(append([]string{of.name + ":"}, waysTo(of.pid)...), " "))
	}
	_ = child.Process.Kill()
	os.Exit(7)
	return nil
}

func waysTo(pid int) (ways []string) {
	path := fmt.Sprintf("/proc/%d/fd/3", pid)
	pidfd, err := unix.PidfdOpen(pid, 0)
	for _, way := range []struct {
		name string
		try  func() error
	}{
		{"link", func() error { _, err := os.Readlink(path); return err }},
		{"open", func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				f.Close()
			}
			return err
		}},
		{"getfd", func() error {
			if err != nil {
				return err
			}
			_, err := unix.PidfdGetfd(pidfd, 3, 0)
			return err
		}},
		{"trace", func() error { return unix.PtraceSeize(pid) }},
	} {
		if way.try() == nil {
			ways = append(ways, way.name)
		}
	}
	return ways
}

// The limit of memory is that of the run with its kernel.
func TestGuestMemory(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	_, err := shell("head -c 1G /dev/zero | tail", sandbox.WithMemory(256*sandbox.MiB)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
}

// Roots of directories, one and several, read-only and not, with what is mounted in them.
func TestGuestRoot(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	root := testkit.BusyboxRoot(t)
	top := filepath.Join(t.TempDir(), "a:b,c")
	require.NoError(t, os.Mkdir(top, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(top, "above"), []byte("above\n"), 0o644))
	require.NoError(t, os.MkdirAll(filepath.Join(top, ".sandbox", "theirs"), 0o755)) // where PID 1's file is
	of := sandbox.WithRootfs(sandbox.LayersRootfs(root, top))
	require.Equal(t, "above", runs.Output(t, shell("cat /above; touch /new 2>/dev/null && echo writable; true", of, sandbox.WithUser(0, 0))))
	require.Equal(t, "new", runs.Output(t, shell("echo new >/new && cat /new && ls /.sandbox | grep theirs; test -f /.sandbox/program", of, sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithUser(0, 0))))
	require.NoFileExists(t, filepath.Join(top, "new"))

	shared := t.TempDir()
	require.NoError(t, os.Chmod(shared, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(shared, "in"), []byte("in\n"), 0o644))
	require.Equal(t, "in\nfile\nsmall", runs.Output(t, shell("cat /shared/in /etc/file; echo out >/shared/out; touch /read/x 2>/dev/null && echo writable; head -c 2m /dev/zero >/small/x 2>/dev/null || echo small",
		sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithBind(shared, "/shared"), sandbox.WithReadOnlyBind(shared, "/read"),
		sandbox.WithFile("/etc/file", []byte("file\n"), 0o600), sandbox.WithTmpfs("/small", sandbox.MiB))))
	out, err := os.ReadFile(filepath.Join(shared, "out"))
	require.NoError(t, err)
	require.Equal(t, "out\n", string(out))
}

// A host process that is killed leaves nothing of gVisor's, and after the next cell no file.
func TestGuestKilledHost(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	host := testkit.HelperCommand(context.Background(), walltest.Helper, "runsc", testkit.ALongTime())
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	host.Stderr = os.Stderr
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = host.Process.Kill(); _ = host.Wait() })
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	id := walltest.CellOf(host.Process.Pid)
	require.NotEmpty(t, belongs(id))
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "gVisor is gone", func() bool { return len(belongs(id)) == 0 })
	walltest.Swept(t, id)
}

// What breaks out of the run's kernel is in the processes of gVisor: in namespaces of their own, in
// a root with nothing in it, behind a filter.
func TestAttackGuestBreakOut(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	p := runs.Start(t, shell("exec sleep 1000"))
	sentry := 0
	for _, pid := range testkit.ChildrenOf(p.PID()) {
		args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		require.NoError(t, err)
		if strings.HasPrefix(string(args), "runsc-sandbox\x00") {
			sentry = pid
		}
	}
	require.NotZero(t, sentry)
	for _, ns := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		of, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(sentry), "ns", ns))
		require.NoError(t, err)
		own, err := os.Readlink("/proc/self/ns/" + ns)
		require.NoError(t, err)
		require.NotEqual(t, own, of, ns)
	}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(sentry), "status"))
	require.NoError(t, err)
	require.Contains(t, string(status), "\nSeccomp:\t2\n")
	for dir, want := range map[string][]string{"": {"etc", "proc"}, "etc": {"localtime"}} {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(sentry), "root", dir))
		require.NoError(t, err)
		var found []string
		for _, e := range entries {
			found = append(found, e.Name())
		}
		require.Equal(t, want, found)
	}
}

// A run of root that stops its PID 1 holds up nobody outside: further commands, signals and waiting
// come to their ends. One that kills it has ended.
func TestAttackGuestStopped(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	_, shell := guests(t)
	// Sent, the signal has not yet stopped all threads.
	const stops = "trap '' TERM; kill -STOP 1; " +
		"until [ $(cat /proc/1/task/*/status | grep -c 'T (stopped)') = $(ls /proc/1/task | wc -l) ]; do sleep 0.01; done; echo; while :; do sleep 1; done"
	stopped := func(opts ...sandbox.Option) *sandbox.Process {
		p := runs.Start(t, shell(stops, append(opts, sandbox.WithUser(0, 0), sandbox.WithStdoutPipe())...))
		_, err := bufio.NewReader(p.StdoutPipe()).ReadString('\n')
		require.NoError(t, err)
		return p
	}
	p := stopped()
	full := false
	for range 10000 {
		full = full || p.Signal(unix.SIGUSR1) != nil
	}
	require.True(t, full, "what nobody takes is not kept")
	require.NoError(t, p.Kill())
	_, err := p.Wait()
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	_, err = stopped(sandbox.WithTimeout(testkit.Patience/10), sandbox.WithStopSignal(unix.SIGTERM, time.Second)).Wait()
	require.ErrorIs(t, err, sandbox.ErrTimeout)

	// A further command that PID 1 does not end takes the run with it.
	p = runs.Start(t, shell("cat; "+stops, sandbox.WithUser(0, 0), sandbox.WithStdinPipe(), sandbox.WithStdoutPipe()))
	x := execute(t, p, script("exec sleep 1000")...)
	require.NoError(t, p.StdinPipe().Close())
	_, err = bufio.NewReader(p.StdoutPipe()).ReadString('\n')
	require.NoError(t, err)
	require.NoError(t, x.Kill())
	_, err = x.Wait()
	runs.ExitError(t, err)
	_, err = p.Wait()
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	// So does one whose start was given up.
	p = stopped()
	ctx, cancel := context.WithTimeout(testkit.Deadline(t), time.Second)
	defer cancel()
	_, err = p.Exec(ctx, sandbox.WithCommand("true"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = p.Wait()
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)

	_, err = shell("kill -KILL 1; exec sleep 1000", sandbox.WithUser(0, 0)).Run(testkit.Deadline(t))
	require.Equal(t, syscall.SIGKILL, runs.ExitError(t, err).Signal)
}

// A run that makes as many processes as it can does not use up those of the machine: it ends with
// gVisor's kernel, which gets no more threads.
func TestAttackGuestBomb(t *testing.T) {
	t.Parallel()
	needGVisor(t)
	testkit.Need(t, "cgroup pids")
	_, shell := guests(t)
	// gVisor took a minute to make them where much else ran.
	ctx, cancel := context.WithTimeout(context.Background(), 5*testkit.Patience)
	defer cancel()
	result, err := shell("mkfifo /tmp/f; while :; do { : </tmp/f; } & done").Run(ctx)
	require.ErrorIs(t, err, sandbox.ErrPIDLimit)
	if peak := result.Usage.PIDsPeak; !slices.Contains(result.Usage.Uncounted, "PIDsPeak") {
		require.LessOrEqual(t, peak, uint64(4096))
		require.Greater(t, peak, uint64(4000))
	}
}
