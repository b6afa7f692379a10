//go:build linux

package e2e

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Programs may open their streams again by name.
func TestRootlessStreamsOpenAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, script, stdout, stderr string }{
		{"stdout", "echo a >/dev/stdout", "a\n", ""},
		{"stdout, appending", "echo a >>/dev/stdout; echo b >>/proc/self/fd/1", "a\nb\n", ""},
		{"stderr", "echo a >/dev/stderr", "", "a\n"},
		{"tee", "echo a | tee /dev/stderr", "a\n", "a\n"},
		{"stdin", "cat </dev/stdin", "input\n", ""},
		{"a name as argument", "cat /dev/stdin /proc/self/fd/0", "input\n", ""},
		{"by number", "cat /dev/fd/0 >/dev/fd/2", "", "input\n"},
		{"for a child in another session", "setsid -w sh -c 'echo a >/dev/stdout'", "a\n", ""},
		{"a log that is a link", "ln -s /dev/stdout /tmp/access.log; echo GET / >>/tmp/access.log", "GET /\n", ""},
		{"process substitution", `bash -c 'cat <(echo a) - <(echo b); echo c > >(cat)' | cat`, "a\ninput\nb\nc\n", ""},
		{"nobody's streams", "sh -c 'echo x >/dev/stdout; cat /dev/stdin' </dev/null >/dev/null; echo a", "a\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			_, err := runs.Shell(c.script, sandbox.WithStdin(strings.NewReader("input\n")), sandbox.WithStdout(&stdout), sandbox.WithStderr(&stderr)).Run(testkit.Deadline(t))
			require.NoError(t, err, stderr.String())
			require.Equal(t, c.stdout, stdout.String())
			require.Equal(t, c.stderr, stderr.String())
		})
	}
}

// That holds for any user, a prepared run, and a run whose output is counted.
func TestRootlessStreamsOpenAgainInEveryRun(t *testing.T) {
	t.Parallel()
	both := []sandbox.Option{sandbox.WithCommand("sh", "-c", "cat /dev/stdin >/dev/stdout")}
	for name, s := range map[string]*sandbox.Sandbox{
		"as uid 0":           sandbox.New(sandbox.WithUser(0, 0)),
		"as others":          sandbox.New(sandbox.WithUser(7, 8)),
		"with output limit":  sandbox.New(sandbox.WithOutputLimit(sandbox.MiB)),
		"prepared":           runs.Prepared(t, 1),
		"with all it may do": sandbox.New(sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER")),
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, "input", runs.Output(t, s.With(both...).With(sandbox.WithStdin(strings.NewReader("input")))))
		})
	}
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		t.Run("without a user namespace", func(t *testing.T) {
			require.Equal(t, "input", runs.Output(t, runs.HostUser(sandbox.New(both...)).With(sandbox.WithStdin(strings.NewReader("input")))))
		})
	}
}

// A server opens its log, and its workers open it again as another user.
func TestStreamsOpenAgainAsAnotherUser(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testkit.Need(t, "python3")
	script := `import os; os.setgid(33); os.setuid(33); open("/dev/stdout", "a").write("worker\n"); print(open("/dev/stdin").read())`
	out := runs.Output(t, sandbox.New(sandbox.WithCommand("/usr/bin/python3", "-c", script), sandbox.WithUser(0, 0),
		sandbox.WithCapabilities("CAP_SETUID", "CAP_SETGID"), sandbox.WithStdin(strings.NewReader("input"))))
	require.Equal(t, "worker\ninput", out)
}

// Pipes that the caller hands in can be opened again only in their descriptor's direction.
func TestRootlessHandedInPipesOpenAgain(t *testing.T) {
	t.Parallel()
	in, feed, err := os.Pipe()
	require.NoError(t, err)
	result, out, err := os.Pipe()
	require.NoError(t, err)
	defer in.Close()
	defer result.Close()
	_, err = feed.WriteString("hello")
	require.NoError(t, err)
	require.NoError(t, feed.Close())
	script := "cat /dev/fd/3 >/dev/fd/4 && echo done >/proc/self/fd/1; (: >/dev/fd/3) 2>/dev/null && echo wrote; (: </dev/fd/4) 2>/dev/null && echo read; true"
	got := runs.Output(t, runs.Shell(script, sandbox.WithExtraFiles(in, out)))
	require.NoError(t, out.Close())
	if !runs.OneID(t) { // otherwise the run's user owns the pipes
		require.Equal(t, "done", got)
	}
	require.True(t, strings.HasPrefix(got, "done"), got)
	text, err := io.ReadAll(result)
	require.NoError(t, err)
	require.Equal(t, "hello", string(text))
}

// The permissions of a named pipe, or of a file, stay as its owner has set them.
func TestRootlessHandedInFilesKeepTheirModes(t *testing.T) {
	t.Parallel()
	dir := testkit.OpenDir(t)
	fifo, file := dir+"/fifo", dir+"/file"
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	testkit.WriteFile(t, file, "text", 0o600)
	pipe, err := os.OpenFile(fifo, os.O_RDWR, 0)
	require.NoError(t, err)
	defer pipe.Close()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	memory, err := unix.MemfdCreate("memory", 0)
	require.NoError(t, err)
	mem := os.NewFile(uintptr(memory), "memory")
	defer mem.Close()
	// Everybody who can find a file in memory may open it.
	require.Equal(t, "a", runs.Output(t, runs.Shell("echo a >/dev/fd/5; cat /dev/fd/5", sandbox.WithExtraFiles(pipe, f, mem))))
	for _, name := range []string{fifo, file} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
	}
}
