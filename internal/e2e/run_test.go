//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func TestRun(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	for _, test := range []struct {
		script string
		want   sandbox.Result
		err    string
	}{
		{"exit 0", sandbox.Result{}, ""},
		{"exit 3", sandbox.Result{ExitCode: 3}, "sandbox: exit status 3"},
		{"exit 255", sandbox.Result{ExitCode: 255}, "sandbox: exit status 255"},
		{"kill -TERM $$", sandbox.Result{ExitCode: -1, Signal: syscall.SIGTERM, Reason: sandbox.Signaled}, "sandbox: signal: terminated"},
		{"kill -KILL $$", sandbox.Result{ExitCode: -1, Signal: syscall.SIGKILL, Reason: sandbox.Signaled}, "sandbox: signal: killed"},
		{"kill -SEGV $$", sandbox.Result{ExitCode: -1, Signal: syscall.SIGSEGV, Reason: sandbox.Signaled}, "sandbox: signal: segmentation fault"},
		{"sh -c 'kill -KILL $$'", sandbox.Result{ExitCode: 137}, "sandbox: exit status 137"},
	} {
		t.Run(test.script, func(t *testing.T) {
			t.Parallel()
			result, err := runs.Shell(test.script).Run(testkit.Deadline(t))
			require.NotNil(t, result, "%v", err)
			require.Positive(t, result.Usage.Wall)
			got := *result
			got.Usage = sandbox.Usage{}
			require.Equal(t, test.want, got)
			if test.err == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, test.err)
			require.Same(t, result, runs.ExitError(t, err).Result)
			for _, limit := range []error{sandbox.ErrTimeout, sandbox.ErrCPUTime, sandbox.ErrOutOfMemory, sandbox.ErrOutputLimit, sandbox.ErrPIDLimit, sandbox.ErrCellLost, context.Canceled} {
				require.NotErrorIs(t, err, limit)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	ctx := testkit.Deadline(t)
	out, err := runs.Shell("echo out; echo err >&2").Output(ctx)
	require.NoError(t, err)
	require.Equal(t, "out\n", string(out))

	out, err = runs.Shell("echo out; echo err >&2; exit 1").Output(ctx)
	require.Equal(t, "out\n", string(out))
	require.Equal(t, "err\n", string(runs.ExitError(t, err).Stderr))

	var stderr strings.Builder
	_, err = runs.Shell("echo err >&2; exit 1", sandbox.WithStderr(&stderr)).Output(ctx)
	require.Equal(t, "err\n", stderr.String())
	require.Empty(t, runs.ExitError(t, err).Stderr)

	_, err = runs.Shell("echo begin >&2; yes | head -c 1000000 >&2; echo end >&2; exit 1").Output(ctx)
	kept := runs.ExitError(t, err).Stderr
	require.Less(t, len(kept), 100_000)
	require.True(t, bytes.HasPrefix(kept, []byte("begin\n")) && bytes.HasSuffix(kept, []byte("end\n")))

	out, err = runs.Shell("for i in 1 2 3; do echo out$i; echo err$i >&2; done").CombinedOutput(ctx)
	require.NoError(t, err)
	require.Equal(t, "out1\nerr1\nout2\nerr2\nout3\nerr3\n", string(out))

	_, err = runs.Shell("", sandbox.WithStdout(&stderr)).Output(ctx)
	require.ErrorContains(t, err, "WithStdout")
	_, err = runs.Shell("", sandbox.WithStderr(&stderr)).CombinedOutput(ctx)
	require.ErrorContains(t, err, "WithStderr")
}

// Who returns no Process refuses what only that can use: such a run would wait for it for ever.
func TestRunAlone(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]sandbox.Option{"WithHold": sandbox.WithHold(), "WithTerminal": sandbox.WithTerminal(24, 80),
		"WithStdinPipe": sandbox.WithStdinPipe(), "WithStdoutPipe": sandbox.WithStdoutPipe(), "WithStderrPipe": sandbox.WithStderrPipe()} {
		s, ctx := sandbox.New(sandbox.WithCommand("cat"), sandbox.WithTimeout(testkit.Patience/50), sandbox.WithDir("wrong"), o), testkit.Deadline(t)
		for by, run := range map[string]func() error{
			"Run":            func() error { _, err := s.Run(ctx); return err },
			"Output":         func() error { _, err := s.Output(ctx); return err },
			"CombinedOutput": func() error { _, err := s.CombinedOutput(ctx); return err },
		} {
			err := run()
			require.ErrorContains(t, err, name+": "+by+" returns no Process")
			require.ErrorContains(t, err, "WithDir: ", "all wrong options are reported")
		}
	}
}

func TestCommandLookup(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	tools := sandbox.New(
		sandbox.WithFile("/opt/here/tool", []byte("#!/bin/sh\necho tool $0 $1\n"), 0o755),
		sandbox.WithFile("/opt/forbidden/tool", []byte("#!/bin/sh\n"), 0o644),
		sandbox.WithFile("/opt/here/broken", []byte("#!/no/interpreter\n"), 0o755),
		sandbox.WithFile("/opt/here/data", []byte("not a program"), 0o755),
		sandbox.WithEnv("PATH=/opt/none::opt:/opt/forbidden:/opt/here:/usr/bin"),
	)
	command := func(name string, args ...string) *sandbox.Sandbox {
		return tools.With(sandbox.WithCommand(name, args...))
	}
	require.Equal(t, "tool /opt/here/tool x", runs.Output(t, command("tool", "x")))
	require.Equal(t, "tool /opt/here/tool y", runs.Output(t, command("/opt/here/tool", "y")))
	require.Equal(t, "tool ./tool z", runs.Output(t, command("./tool", "z").With(sandbox.WithDir("/opt/here"))))
	require.Equal(t, "tool ../here/tool z", runs.Output(t, command("../here/tool", "z").With(sandbox.WithDir("/opt/forbidden"))))

	hostOnly := testkit.OpenDir(t) + "/tool"
	testkit.WriteFile(t, hostOnly, "#!/bin/sh\n", 0o755)
	for name, want := range map[string]error{
		"no-such-command":     fs.ErrNotExist,
		"/no/such/command":    fs.ErrNotExist,
		"./tool":              fs.ErrNotExist, // not in the home directory
		hostOnly:              fs.ErrNotExist,
		"/opt/here/broken":    fs.ErrNotExist,
		"/opt/forbidden/tool": fs.ErrPermission,
		"/opt/here":           fs.ErrPermission,
		"/opt/here/data":      syscall.ENOEXEC,
	} {
		result, err := command(name).Run(testkit.Deadline(t))
		require.Nil(t, result, name)
		require.ErrorIs(t, err, want, name)
		setup := runs.SetupError(t, err, name)
		require.Equal(t, "exec", setup.Stage)
		require.NotEmpty(t, setup.Hint, name)
	}
	_, err := command("tool").With(sandbox.WithEnv("PATH=/opt/forbidden")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrPermission)
	_, err = command("true").With(sandbox.WithEnv("PATH=")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SANDBOX_TEST_SECRET", "of the host")
	testkit.Need(t, "root")
	env := sandbox.New(sandbox.WithCommand("env"))
	require.ElementsMatch(t, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/home/sandbox", "USER=sandbox", "LANG=C.UTF-8"}, strings.Split(runs.Output(t, env), "\n"))
	got := runs.Output(t, env.With(sandbox.WithEnv("A=1", "B=", "LANG=C"), sandbox.WithEnv("A=two words=and more")))
	require.ElementsMatch(t, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/home/sandbox", "USER=sandbox", "LANG=C", "A=two words=and more", "B="}, strings.Split(got, "\n"))
}

func TestDir(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	pwd := sandbox.New(sandbox.WithCommand("pwd"))
	require.Equal(t, "/home/sandbox", runs.Output(t, pwd))
	require.Equal(t, "/usr/bin", runs.Output(t, pwd.With(sandbox.WithDir("/usr/bin"))))
	_, err := pwd.With(sandbox.WithDir("/no/such/dir")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
	setup := runs.SetupError(t, err, "/no/such/dir")
	require.Equal(t, "WithDir", setup.Stage)
	require.NotEmpty(t, setup.Hint)
	_, err = pwd.With(sandbox.WithDir("/etc/passwd")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, unix.ENOTDIR)
}

func TestArguments(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	require.Equal(t, "[][a b][][\n][$x]", runs.Output(t, sandbox.New(sandbox.WithCommand("printf", "[%s]", "", "a b", "", "\n", "$x"))))

	args := []string{"-c", `echo $#; printf %s "$@" | wc -c`, "sh"}
	for range 16 {
		args = append(args, strings.Repeat("x", 64<<10)) // execve(2) takes 128 KiB each
	}
	require.Equal(t, "16\n1048576", runs.Output(t, sandbox.New(sandbox.WithCommand("sh", args...))))

	_, err := sandbox.New(sandbox.WithCommand("true", strings.Repeat("x", 200<<10))).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, unix.E2BIG)
	_, err = sandbox.New(sandbox.WithCommand("true", strings.Repeat("x", 16<<20))).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "larger than")
}

func TestStandardStreams(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	cat := sandbox.New(sandbox.WithCommand("cat"))
	require.Equal(t, "", runs.Output(t, cat), "the default is an empty input")
	require.Equal(t, "text", runs.Output(t, cat.With(sandbox.WithStdin(strings.NewReader("text")))))

	in, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer in.Close()
	_, err = in.WriteString("skipped, read")
	require.NoError(t, err)
	_, err = in.Seek(9, io.SeekStart)
	require.NoError(t, err)
	require.Equal(t, "read", runs.Output(t, cat.With(sandbox.WithStdin(in))))

	out, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer out.Close()
	both := runs.Shell("for i in 1 2 3; do echo out$i; echo err$i >&2; done", sandbox.WithStdout(out), sandbox.WithStderr(out))
	_, err = both.Run(testkit.Deadline(t))
	require.NoError(t, err)
	text, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Equal(t, "out1\nerr1\nout2\nerr2\nout3\nerr3\n", string(text))
	_, err = out.WriteString("still open")
	require.NoError(t, err)

	var o, e bytes.Buffer
	_, err = runs.Shell("echo out; echo err >&2", sandbox.WithStdout(&o), sandbox.WithStderr(&e)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, "out\n", o.String())
	require.Equal(t, "err\n", e.String())

	// Values that can't be compared count as two writers.
	plain := uncomparable{&o, nil}
	_, err = runs.Shell("echo out; echo err >&2", sandbox.WithStdout(plain), sandbox.WithStderr(plain)).Run(testkit.Deadline(t))
	require.NoError(t, err)
}

type uncomparable struct {
	io.Writer
	_ []int
}

func (u uncomparable) Write(b []byte) (int, error) { return len(b), nil }

// A run that does not read all of its input ends all the same, whether the rest fills the pipe or
// never comes.
func TestUnreadInput(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	endless := func() io.Reader { return zeros{} }
	require.Equal(t, "1", runs.Output(t, runs.Shell("head -c 1 | wc -c", sandbox.WithStdin(endless()))))
	require.Equal(t, "done", runs.Output(t, runs.Shell("exec <&-; echo done", sandbox.WithStdin(endless()))))
	_, err := sandbox.New(sandbox.WithCommand("true"), sandbox.WithStdin(endless())).Run(testkit.Deadline(t))
	require.NoError(t, err)

	r, w := io.Pipe()
	_, err = sandbox.New(sandbox.WithCommand("true"), sandbox.WithStdin(r)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	w.Close() // ends the Read that Wait did not wait for
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLargeInputComesBack(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	const size = 64 * sandbox.MiB
	in, out := sha256.New(), sha256.New()
	random := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), in)
	_, err := sandbox.New(sandbox.WithCommand("cat"), sandbox.WithStdin(random), sandbox.WithStdout(out)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Equal(t, in.Sum(nil), out.Sum(nil))
}

var errOfTest = errors.New("an error of the test's")

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, errOfTest
	}
	return len(p), nil
}

func (f *failing) Read(p []byte) (int, error) {
	if f.after == 0 {
		return 0, errOfTest
	}
	n := min(f.after, len(p))
	f.after -= n
	return n, nil
}

func TestCopyErrors(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	result, err := runs.Shell("echo out", sandbox.WithStdout(&failing{})).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, errOfTest)
	require.Equal(t, 0, result.ExitCode)
	result, err = sandbox.New(sandbox.WithCommand("cat"), sandbox.WithStdin(&failing{after: 10})).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, errOfTest)
	require.Equal(t, 0, result.ExitCode)
	// A writer that fails ends a command that goes on writing.
	_, err = sandbox.New(sandbox.WithCommand("yes"), sandbox.WithStdout(&failing{after: 100_000})).Run(testkit.Deadline(t))
	require.Equal(t, syscall.SIGPIPE, runs.ExitError(t, err).Signal)
	require.ErrorIs(t, err, errOfTest, "which says why")
	require.EqualError(t, err, "sandbox: signal: broken pipe (copying standard streams: "+errOfTest.Error()+")")
	_, err = sandbox.New(sandbox.WithCommand("yes"), sandbox.WithStdout(&failing{after: 100_000}), sandbox.WithOutputLimit(1)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit, "what ended it comes first")
	require.NotErrorIs(t, err, errOfTest)
}

// A slow writer makes the command wait, and loses nothing.
func TestSlowWriter(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	r, w := io.Pipe()
	p := runs.Start(t, sandbox.New(sandbox.WithCommand("head", "-c", "300000", "/dev/zero"), sandbox.WithStdout(w)))
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = p.Wait() }()
	select {
	case <-ended:
		require.Fail(t, "Wait returned before all of the output was taken")
	case <-time.After(100 * time.Millisecond):
	}
	n, err := io.CopyN(io.Discard, r, 300000)
	require.NoError(t, err)
	require.EqualValues(t, 300000, n)
	<-ended
}

func TestExtraFiles(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	r1, w1, err := os.Pipe()
	require.NoError(t, err)
	r2, w2, err := os.Pipe()
	require.NoError(t, err)
	defer func() { r1.Close(); r2.Close() }()
	_, err = w1.WriteString("question")
	require.NoError(t, err)
	w1.Close()
	_, err = runs.Shell("cat <&3 >&4; echo . >&4", sandbox.WithExtraFiles(r1), sandbox.WithExtraFiles(w2)).Run(testkit.Deadline(t))
	require.NoError(t, err)
	w2.Close()
	answer, err := io.ReadAll(r2)
	require.NoError(t, err)
	require.Equal(t, "question.\n", string(answer))

	many := make([]*os.File, 100)
	for i := range many {
		many[i] = r1
	}
	require.Equal(t, "104", runs.Output(t, runs.Shell("ls /proc/self/fd | wc -l", sandbox.WithExtraFiles(many...))), "0, 1, 2, 100 files and ls's own")
	_, err = runs.Shell("", sandbox.WithExtraFiles(append(many, r1)...)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithExtraFiles")
	_, err = runs.Shell("", sandbox.WithExtraFiles(nil)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithExtraFiles")
	r1.Close()
	_, err = runs.Shell("", sandbox.WithExtraFiles(r1)).Run(testkit.Deadline(t))
	require.Error(t, err, "a closed file")
}

// A command that asks to be traced by its parent, as some do to keep debuggers away, goes on with
// its signals, and neither its end nor that of a child of init is taken from its stops.
func TestRootlessTraced(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "python3")
	const script = `import ctypes, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("got", flush=True))
if ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0: sys.exit("it may not")
os.kill(os.getpid(), signal.SIGUSR1)
if sys.argv[1] == "exec": os.execv("/bin/sh", ["sh", "-c", "echo executed; exit 4"])
os.kill(os.getpid(), signal.SIGKILL)`
	for how, want := range map[string]string{"exec": "got\nexecuted\n", "kill": "got\n"} {
		var out bytes.Buffer
		res, err := sandbox.New(sandbox.WithCommand("/usr/bin/python3", "-c", script, how), sandbox.WithStdout(&out)).Run(testkit.Deadline(t))
		var exit *sandbox.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, want, out.String())
		if how == "exec" {
			require.Equal(t, 4, res.ExitCode)
		} else {
			require.Equal(t, syscall.SIGKILL, res.Signal)
		}
	}
}
