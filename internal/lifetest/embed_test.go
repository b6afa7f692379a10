//go:build linux

package lifetest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// TestEmbedded builds programs that import the library, in a module of their own and in every way
// in which programs are built, and starts them in the environments and states in which programs may
// be.
func TestEmbedded(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "time to build programs")
	m := newModule(t)
	t.Run("all", func(t *testing.T) {
		for name, test := range embedTests {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, m)
			})
		}
	})
	bootOnce(t)
	requireNothingLeft(t)
}

// module is the directory of the programs, with the binaries built from them.
type module struct {
	dir    string
	mu     sync.Mutex
	builds map[string]func() (string, error)
}

// newModule makes a module with the programs of testdata/embed and the same requirements as this
// module.
func newModule(t *testing.T) *module {
	t.Helper()
	m := &module{dir: t.TempDir(), builds: map[string]func() (string, error){}}
	require.NoError(t, os.CopyFS(m.dir, os.DirFS("testdata/embed")))
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	const path = "github.com/cellkit/sandbox"
	text := strings.Replace(string(mod), "module "+path, "module example.com/embed", 1)
	text += fmt.Sprintf("\nrequire %s v0.0.0\n\nreplace %s => %q\n", path, path, root)
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "go.mod"), []byte(text), 0o600))
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "go.sum"), sum, 0o600))
	return m
}

// build returns the program of the given package, built with the given arguments of the go command.
// Variables of its environment may be among the arguments.
func (m *module) build(t *testing.T, args ...string) string {
	t.Helper()
	key := strings.Join(args, " ")
	m.mu.Lock()
	if m.builds[key] == nil {
		out := filepath.Join(m.dir, fmt.Sprintf("program%d", len(m.builds)))
		m.builds[key] = sync.OnceValues(func() (string, error) { return out, m.goBuild(out, args) })
	}
	build := m.builds[key]
	m.mu.Unlock()
	program, err := build()
	require.NoError(t, err)
	return program
}

func (m *module) goBuild(out string, args []string) error {
	env := append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=1")
	verb := []string{"build"}
	for ; strings.Contains(args[0], "=") && args[0][0] != '-'; args = args[1:] {
		env = append(env, args[0])
	}
	if args[0] == "test" {
		verb, args = []string{"test", "-c"}, args[1:]
	}
	cmd := exec.Command("go", append(append(verb, "-o", out), args...)...)
	cmd.Dir, cmd.Env = m.dir, env
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, text)
	}
	return nil
}

// prints starts a program and compares what it prints on both streams.
func prints(t *testing.T, want string, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, want, string(out))
}

func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	// Ends programs that hang before the test binary's own deadline.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	return cmd
}

// copyOf copies the file to the given place.
func copyOf(t *testing.T, file, to string, perm os.FileMode) string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o700))
	// Renamed, so that no process that another goroutine forks holds it open for writing.
	require.NoError(t, os.WriteFile(to+".new", data, perm))
	require.NoError(t, os.Chmod(to+".new", perm))
	require.NoError(t, os.Rename(to+".new", to))
	return to
}

// waiting starts the program's wait command and lets it go on after change.
func waiting(t *testing.T, program string, change func(), env ...string) {
	t.Helper()
	cmd := command(t, program, "wait")
	cmd.Env = append(os.Environ(), env...)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(stdout)
	for _, want := range []string{"noisy\n", "ready\n"} {
		got, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	change()
	_, err = io.WriteString(stdin, "\n")
	require.NoError(t, err)
	rest, err := io.ReadAll(lines)
	require.NoError(t, errors.Join(err, cmd.Wait()), "%s", rest)
	require.Equal(t, "wait: done\n", string(rest))
}
