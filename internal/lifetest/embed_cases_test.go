//go:build linux

package lifetest_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const minimal = "main: hi\n"

var embedTests = map[string]func(t *testing.T, m *module){
	"minimal": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, m.build(t, "./minimal")))
	},
	"race detector": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, m.build(t, "-race", "./minimal")))
	},
	"static": func(t *testing.T, m *module) {
		program := m.build(t, "-tags=netgo,osusergo", "-ldflags=-linkmode external -extldflags -static", "./minimal")
		prints(t, minimal, command(t, program))
	},
	"position-independent, stripped": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, m.build(t, "-buildmode=pie", "-trimpath", "-ldflags=-s -w", "./minimal")))
	},
	"coverage": func(t *testing.T, m *module) {
		cmd := command(t, m.build(t, "-cover", "-coverpkg=./...,github.com/cellkit/sandbox/...", "./minimal"))
		dir := t.TempDir()
		cmd.Env = append(os.Environ(), "GOCOVERDIR="+dir)
		prints(t, minimal, cmd)
		counters, err := filepath.Glob(filepath.Join(dir, "covcounters.*"))
		require.NoError(t, err)
		require.Len(t, counters, 1, "the user's own program leaves its counters, and nobody else does")
	},
	"without cgo": func(t *testing.T, m *module) {
		program := m.build(t, "CGO_ENABLED=0", "./minimal")
		file, err := elf.Open(program)
		require.NoError(t, err)
		defer file.Close()
		libs, err := file.ImportedLibraries()
		require.NoError(t, err)
		require.Empty(t, libs)
		prints(t, minimal, command(t, program))
	},
	"without cgo, heap of 1 GiB": func(t *testing.T, m *module) {
		prints(t, "noisy\nheap: done\n", command(t, m.build(t, "CGO_ENABLED=0", "./commands"), "heap"))
	},
	"test binary": func(t *testing.T, m *module) {
		out, err := command(t, m.build(t, "test", "./tested"), "-custom=yes", "-test.v").CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, 1, strings.Count(string(out), "TestMain: yes"), "%s", out)
		require.Equal(t, 1, strings.Count(string(out), "TestMain"), "%s", out)
		require.Contains(t, string(out), "--- PASS: TestOutput")
	},

	"first argument init":               does("init"),
	"first argument sandbox-forkserver": does("sandbox-forkserver"),
	"standard streams closed":           does("closed"),
	"heap of 1 GiB":                     does("heap"),
	"os/exec meanwhile":                 does("busy"),
	"umask 777":                         does("umask"),
	"thread ends after boot":            does("thread"),
	"shut down and used again":          does("twice"),
	"working directory removed":         does("cwd"),

	"file deleted": func(t *testing.T, m *module) {
		program := copyOf(t, m.build(t, "./commands"), filepath.Join(t.TempDir(), "program"), 0o755)
		waiting(t, program, func() { require.NoError(t, os.Remove(program)) })
	},
	"file replaced": func(t *testing.T, m *module) {
		program := copyOf(t, m.build(t, "./commands"), filepath.Join(t.TempDir(), "program"), 0o755)
		waiting(t, program, func() { copyOf(t, "/bin/false", program, 0o755) })
	},
	"library replaced": func(t *testing.T, m *module) {
		program := m.build(t, "./commands")
		libc := libcOf(t, program)
		dir := t.TempDir()
		own := copyOf(t, libc, filepath.Join(dir, filepath.Base(libc)), 0o755)
		waiting(t, program, func() { copyOf(t, libc, own, 0o755) }, "LD_LIBRARY_PATH="+dir)
	},
	"only root may execute it": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, copyOf(t, m.build(t, "./minimal"), filepath.Join(t.TempDir(), "program"), 0o700)))
	},
	"only root may execute it, no reading": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, copyOf(t, m.build(t, "./minimal"), filepath.Join(t.TempDir(), "program"), 0o100)))
	},
	"only root may enter its directory": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, copyOf(t, m.build(t, "./minimal"), filepath.Join(t.TempDir(), "own/program"), 0o755)))
	},
	"spaces in paths": func(t *testing.T, m *module) {
		program := copyOf(t, m.build(t, "./minimal"), filepath.Join(t.TempDir(), "a  b/my program (deleted)"), 0o755)
		libc := libcOf(t, program)
		dir := filepath.Join(t.TempDir(), "c  d")
		copyOf(t, libc, filepath.Join(dir, filepath.Base(libc)), 0o755)
		cmd := command(t, program)
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+dir)
		prints(t, minimal, cmd)
	},
	"environment": func(t *testing.T, m *module) {
		cmd := command(t, m.build(t, "./minimal"))
		cmd.Env = append(os.Environ(), "GODEBUG=madvdontneed=1,gctrace=0", "GOMAXPROCS=1", "GOGC=1", "GOTRACEBACK=crash",
			"LD_LIBRARY_PATH=/lib:/usr/lib", "LD_BIND_NOW=1", "HOME=/nonexistent", "PATH=/nonexistent", "TMPDIR=/nonexistent")
		prints(t, minimal, cmd)
	},
	"no environment": func(t *testing.T, m *module) {
		cmd := command(t, m.build(t, "./minimal"))
		cmd.Env = []string{}
		prints(t, minimal, cmd)
	},
	"few descriptors": func(t *testing.T, m *module) {
		prints(t, minimal, command(t, "sh", "-c", "ulimit -n 256 && exec "+m.build(t, "./minimal")))
	},
	"streams closed from the start": func(t *testing.T, m *module) {
		// Go opens /dev/null instead of them.
		prints(t, "0\n", command(t, "sh", "-c", m.build(t, "./minimal")+" <&- >&- 2>&-; echo $?"))
	},
}

// does runs one of the commands of the program "commands".
func does(name string) func(t *testing.T, m *module) {
	return func(t *testing.T, m *module) {
		prints(t, "noisy\n"+name+": done\n", command(t, m.build(t, "./commands"), name))
	}
}

// libcOf returns the C library that the program is linked to.
func libcOf(t *testing.T, program string) string {
	t.Helper()
	out, err := exec.Command("ldd", program).Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		if _, after, ok := strings.Cut(line, "=> "); ok && strings.Contains(line, "libc") {
			path, _, _ := strings.Cut(after, " (0x")
			return path
		}
	}
	t.Fatalf("no C library among %s", out)
	return ""
}
