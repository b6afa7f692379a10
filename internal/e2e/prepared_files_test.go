//go:build linux

package e2e

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Files in memory belong to the command: a prepared run has those of the sandbox that takes it, as
// a fresh run does.
func TestRootlessPreparedFiles(t *testing.T) {
	t.Parallel()
	eperm := uint(unix.EPERM)
	refuse := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"mkdirat", "fallocate", "umask"}, Action: specs.ActErrno, ErrnoRet: &eperm}}}
	box := func(more ...sandbox.Option) func(t *testing.T) []sandbox.Option {
		return func(t *testing.T) []sandbox.Option {
			return append([]sandbox.Option{runs.Layers(testkit.Layer(t, map[string]string{"etc/a": "x"}), testkit.BusyboxRoot(t))}, more...)
		}
	}
	tests := map[string]func(t *testing.T) []sandbox.Option{
		"host":                func(*testing.T) []sandbox.Option { return nil },
		"root":                func(*testing.T) []sandbox.Option { return []sandbox.Option{sandbox.WithUser(0, 0)} },
		"a filter of its own": func(*testing.T) []sandbox.Option { return []sandbox.Option{sandbox.WithSeccomp(refuse)} },
		"writable": func(t *testing.T) []sandbox.Option {
			testkit.Need(t, "overlayfs for runs")
			return []sandbox.Option{sandbox.WithWritableRoot(sandbox.MiB)}
		},
		"directory": func(t *testing.T) []sandbox.Option {
			return []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs(testkit.BusyboxRoot(t)))}
		},
		"layers":          box(),
		"writable layers": box(sandbox.WithWritableRoot(sandbox.MiB)),
	}
	const look = `stat -c '%a %u:%g %s %n' /tmp/a /tmp/a/b /tmp/a/b/c /tmp/none /dev/shm/x /home/sandbox/.profile /data/run; /data/run; cat /tmp/a/b/c`
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			base := runs.Prepared(t, 1, append(opts(t), sandbox.WithTmpfs("/data", sandbox.MiB))...)
			for _, content := range []string{"first", strings.Repeat("second", 20_000)} {
				s := base.With(sandbox.WithCommand("sh", "-c", look), sandbox.WithDir("/tmp/a"), sandbox.WithRlimit("fsize", 0, 0),
					sandbox.WithFile("/tmp/a/b/c", []byte(content), 0o640), sandbox.WithFile("/tmp/none", nil, 0), sandbox.WithFile("/dev/shm/x", []byte("x"), 0o666),
					sandbox.WithFile("//home/sandbox/../sandbox/.profile", []byte("home"), 0o400), sandbox.WithFile("/data/run", []byte("#!/bin/sh\npwd\n"), 0o755))
				fresh := runs.Output(t, s.With(sandbox.WithPrepared(0)))
				lines := strings.Split(fresh, "\n")
				if name == "root" {
					lines = strings.Split(strings.ReplaceAll(fresh, " 0:0 ", " 1000:1000 "), "\n")
				}
				require.Equal(t, []string{"755 1000:1000", "755 1000:1000", "640 1000:1000", "0 1000:1000", "666 1000:1000", "400 1000:1000", "755 1000:1000"}, columns(lines[:7]))
				require.Equal(t, []string{"/tmp/a", content}, lines[7:])

				require.NoError(t, base.Prepare(testkit.Deadline(t)))
				var out strings.Builder
				_, err := runs.StartPrepared(t, s.With(sandbox.WithStdout(&out))).Wait()
				require.NoError(t, err)
				require.Equal(t, fresh, strings.TrimSpace(out.String()))
			}
		})
	}
}

// The places of files elsewhere are prepared. Their content comes with the command. The command
// can't change it if the file is mounted over a root that can't be changed.
func TestRootlessPreparedContent(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T) []sandbox.Option{
		"host": func(*testing.T) []sandbox.Option { return nil },
		"writable": func(t *testing.T) []sandbox.Option {
			testkit.Need(t, "overlayfs for runs")
			return []sandbox.Option{sandbox.WithWritableRoot(sandbox.MiB)}
		},
		"directory": func(t *testing.T) []sandbox.Option {
			return []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs(testkit.BusyboxRoot(t, "/dev", "/proc", "/sys", "/tmp", "/home/sandbox", "/job/deep", "/etc")))}
		},
	}
	const look = `stat -c '%a %u:%g' /job/deep/run /job/data /tmp/m/f; /job/deep/run; cat /job/data /tmp/m/f; for i in 3 4 5 6 7; do [ -e /proc/self/fd/$i ] && echo open; done; true`
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			if name == "directory" {
				testkit.Need(t, "overlayfs for runs") // adds the files' places
			}
			place := func(content string) []sandbox.Option {
				return []sandbox.Option{sandbox.WithFile("/job/deep/run", []byte("#!/bin/sh\npwd\n"), 0o755),
					sandbox.WithFile("/job/../job/data", []byte(content), 0o400), sandbox.WithFile("/tmp/m/f", []byte("x"), 0o640)}
			}
			base := runs.Prepared(t, 1, append(opts(t), sandbox.WithTmpfs("/tmp/m/n", sandbox.MiB), sandbox.WithFile("/job/deep/run", nil, 0),
				sandbox.WithFile("/job/data", nil, 0), sandbox.WithFile("/tmp/m/f", nil, 0))...)
			for _, content := range []string{"first\n", strings.Repeat("second", 20_000) + "\n"} {
				s := base.With(sandbox.WithCommand("sh", "-c", look)).With(place(content)...)
				want := "755 1000:1000\n400 1000:1000\n640 1000:1000\n/home/sandbox\n" + content + "x"
				require.Equal(t, want, runs.Output(t, s.With(sandbox.WithPrepared(0))))
				require.Equal(t, "/home/sandbox", runs.Output(t, s.With(sandbox.WithCommand("/job/deep/run"))), "it can be executed at once")
				require.NoError(t, base.Prepare(testkit.Deadline(t)))
				var out strings.Builder
				_, err := runs.StartPrepared(t, s.With(sandbox.WithStdout(&out))).Wait()
				require.NoError(t, err)
				require.Equal(t, want, strings.TrimSpace(out.String()))
			}
		})
	}
}

// columns returns the modes and owners.
func columns(lines []string) (list []string) {
	for _, line := range lines {
		mode, rest, _ := strings.Cut(line, " ")
		owner, _, _ := strings.Cut(rest, " ")
		list = append(list, mode+" "+owner)
	}
	return list
}

// A directory that a mount point needs belongs to root. Files in it are made before, with the
// rights of the set-up.
func TestRootlessFileBesideMountPoint(t *testing.T) {
	t.Parallel()
	got := runs.Output(t, runs.Shell("cat /tmp/a/f /tmp/a/b/g /tmp/h; touch /tmp/a/x 2>/dev/null || test -w /tmp/a || echo refused", sandbox.WithTmpfs("/tmp/a/m/n", sandbox.MiB),
		sandbox.WithFile("/tmp/a/f", []byte("f"), 0o644), sandbox.WithFile("/tmp/a/b/g", []byte("g"), 0o644), sandbox.WithFile("/tmp/h", []byte("h\n"), 0o644)))
	require.Contains(t, []string{"fgh\nrefused", "fgh"}, got) // with a single id, everything belongs to the run
}

// Files that do not fit are an error of the start that names the option, whether the run was
// prepared or not.
func TestPreparedFilesThatDoNotFit(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	big := make([]byte, sandbox.MiB)
	for _, n := range []int{0, 1} {
		base := sandbox.New(sandbox.WithTmpfs("/small", 64*sandbox.KiB), sandbox.WithPrepared(n))
		if n > 0 {
			require.NoError(t, base.Prepare(testkit.Deadline(t)))
		}
		_, err := base.With(sandbox.WithCommand("sh", "-c", ""), sandbox.WithFile("/small/in/file", big, 0o644)).Run(testkit.Deadline(t))
		require.Equal(t, "WithFile /small/in/file", runs.SetupError(t, err).Stage)
		require.ErrorIs(t, err, unix.ENOSPC)
		_, err = base.With(sandbox.WithCommand("sh", "-c", ""), sandbox.WithFile("/tmp/"+strings.Repeat("x", 300), nil, 0o644)).Run(testkit.Deadline(t))
		require.ErrorIs(t, err, unix.ENAMETOOLONG)
	}
}

// A mount that changes by whom a file is made changes nothing about the file, whichever of two
// sandboxes runs first.
func TestRootlessFileAndMountInTurn(t *testing.T) {
	t.Parallel()
	src := testkit.OpenDir(t)
	for _, mount := range []sandbox.Option{sandbox.WithReadOnlyBind(src, "/tmp/a/y"), sandbox.WithTmpfs("/tmp/a", 0), sandbox.WithTmpfs("/tmp/a/b", 0)} {
		a := runs.Shell("cat /tmp/a/b/c/f", sandbox.WithFile("/tmp/a/b/c/f", []byte("content"), 0o644))
		b := a.With(mount)
		for _, s := range []*sandbox.Sandbox{b, a, b} {
			require.Equal(t, "content", runs.Output(t, s))
		}
	}
}
