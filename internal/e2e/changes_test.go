//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// changes returns what runs changed in the root of s, one line each.
func changes(t testing.TB, s *sandbox.Sandbox) (lines []string) {
	t.Helper()
	list, err := s.RootChanges()
	require.NoError(t, err)
	for _, c := range list {
		lines = append(lines, c.String())
	}
	return lines
}

func TestScratchRoot(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	box := testkit.BusyboxRoot(t)
	some := testkit.Layer(t, map[string]string{"etc/stays": "x", "etc/changes": "x", "etc/goes": "x", "dir/a": "x", "dir/deep/b": "x", "gone/a": "x", "opaque/a": "x", "mode/": "", "link": "-> etc", "srv/": "", "srv/www": "www's", "file": "x"})
	require.NoError(t, os.Lchown(some+"/srv/www", 33, 33))
	for name, test := range map[string]struct {
		root sandbox.Rootfs
		user int
	}{
		"layers": {sandbox.LayersRootfs(box, some), 0},
		"dir":    {sandbox.DirRootfs(some), 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upper := newScratch(t, 8*sandbox.MiB)
			before := testkit.Tree(t, some)
			s := sandbox.New(sandbox.WithRootfs(test.root), sandbox.WithUser(test.user, test.user), sandbox.WithScratchRoot(upper), sandbox.WithTmpfs("/point", sandbox.MiB), sandbox.WithTmpfs("/etc/point", sandbox.MiB))
			if name == "dir" {
				s = s.With(sandbox.WithReadOnlyBind(box+"/bin", "/bin"))
			}
			run := func(script string) string {
				t.Helper()
				return runs.Output(t, s.With(sandbox.WithCommand("/bin/sh", "-c", script)))
			}
			require.Empty(t, changes(t, s), "no run yet")
			run("echo x >/tmp/x; echo x >~/x; echo x >/point/x")
			require.Empty(t, changes(t, s), "file systems of their own are not of the root")
			run(`set -e; echo y >/etc/changes; rm /etc/goes; echo new >"/etc/a b"; mkdir -p /new/dir; echo x >/new/dir/f; ln -s x /new/link
				rm -r /gone /opaque; mkdir /opaque; echo x >/opaque/b; rm -r /dir/deep; ln -sf /x /file; cat /link/changes`)
			want := []string{"removed /dir/deep", "added /etc/a b", "changed /etc/changes", "removed /etc/goes", "changed /file", "removed /gone", "added /new", "added /new/dir", "added /new/dir/f", "added /new/link", "changed /opaque", "added /opaque/b"}
			require.Equal(t, want, changes(t, s))
			require.Equal(t, "y new b", run(`echo $(cat /etc/changes "/etc/a b"; ls /opaque); test ! -e /gone`), "the next run goes on")
			run("rm -r /new '/etc/a b'; chmod 700 /mode 2>/dev/null || true")
			require.NotContains(t, changes(t, s), "added /new")
			if name == "layers" {
				require.Contains(t, changes(t, s), "changed /mode")
				require.Equal(t, "33:33", run("touch /root; stat -c %u:%g /srv/www"))
				require.Equal(t, "www's more", runs.Output(t, s.With(sandbox.WithUser(33, 33), sandbox.WithCommand("/bin/sh", "-c", "echo ' more' >>/srv/www; echo $(cat /srv/www)"))))
				require.Contains(t, changes(t, s), "changed /srv/www")
				require.Equal(t, "33:33 refused", run("echo $(stat -c %u:%g /srv/www) $(echo x 2>/dev/null >/srv/www || echo refused)"))
			}
			require.Equal(t, before, testkit.Tree(t, some), "the root itself changes")
		})
	}
}

func TestScratchRootOfTheHost(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	testkit.Need(t, "idmapped /usr")
	upper := newScratch(t, 64*sandbox.MiB)
	s := sandbox.New(sandbox.WithScratchRoot(upper), sandbox.WithFile("/given", []byte("x"), 0o644))
	for range 2 {
		require.Equal(t, "ok", runs.Output(t, s.With(sandbox.WithCommand("sh", "-c", "echo new >/opt-new; echo 127.0.0.1 host >>/etc/hosts; rm -f /usr/bin/yes; mkdir -p /usr/local/new; echo ok"))))
		list := changes(t, s)
		for _, want := range []string{"added /opt-new", "changed /etc/hosts", "removed /usr/bin/yes", "added /usr/local/new"} {
			require.Contains(t, list, want)
		}
		require.Less(t, len(list), 8, list)
	}
	require.FileExists(t, "/usr/bin/yes")
}

// A scratch that is a run's root can't be used for anything else at the same time.
func TestScratchRootIsNothingElse(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	upper, files, copied := newScratch(t, sandbox.MiB), newScratch(t, sandbox.MiB), newScratch(t, sandbox.MiB)
	require.NoError(t, copied.CopyIn(os.DirFS(t.TempDir()), "."))
	root := sandbox.New(sandbox.WithScratchRoot(upper))
	live := runs.Start(t, root.With(sandbox.WithCommand("sleep", "1000")))
	_, err := root.With(sandbox.WithCommand("true")).Run(testkit.Deadline(t))
	runs.SetupError(t, err, "WithScratchRoot", "the root of another run")
	require.NoError(t, live.Kill())
	_, _ = live.Wait()
	began := time.Now()
	for range 10 {
		runs.Output(t, root.With(sandbox.WithCommand("true")))
	}
	require.Less(t, time.Since(began), testkit.Patience)

	_, err = runs.Shell("true", sandbox.WithScratch("/x", upper)).Run(testkit.Deadline(t))
	runs.SetupError(t, err, "WithScratch", "can't be mounted")
	_, err = runs.Shell("true", sandbox.WithReadOnlyScratch("/x", upper)).Run(testkit.Deadline(t))
	runs.SetupError(t, err, "WithReadOnlyScratch", "can't be mounted")
	require.ErrorContains(t, upper.CopyIn(os.DirFS(t.TempDir()), "."), "can't be mounted")
	runs.Output(t, runs.Shell("true", sandbox.WithScratch("/x", files)))
	for _, s := range []*sandbox.Scratch{files, copied} {
		_, err = runs.Shell("true", sandbox.WithScratchRoot(s)).Run(testkit.Deadline(t))
		runs.SetupError(t, err, "WithScratchRoot", "the scratch has files")
	}
	_, err = runs.Shell("true").RootChanges()
	require.ErrorContains(t, err, "WithScratchRoot: is missing")
	require.NoError(t, upper.Close())
	_, err = root.With(sandbox.WithCommand("true")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithScratchRoot: the source can't be used: the scratch is closed")
	_, err = root.RootChanges()
	require.Error(t, err)
}

// An ordinary user's runs have no ids that the files of a scratch could belong to.
func TestRootlessScratchRoot(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "an ordinary user")
	testkit.Need(t, "files for several runs")
	_, err := runs.Shell("true", sandbox.WithScratchRoot(newScratch(t, sandbox.MiB))).Run(testkit.Deadline(t))
	runs.SetupError(t, err, "WithScratchRoot", "ids of its own")
}

// A full scratch is ENOSPC inside, and nothing worse.
func TestScratchRootIsFull(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	s := sandbox.New(sandbox.WithScratchRoot(newScratch(t, sandbox.MiB)))
	out := runs.Output(t, s.With(sandbox.WithCommand("sh", "-c", "dd if=/dev/zero of=/big bs=1M count=2 2>&1; i=0; while [ $i -lt 1000 ] && echo >/f$i; do i=$((i+1)); done 2>&1; true")))
	require.Contains(t, out, "No space left on device")
	list := changes(t, s)
	require.Contains(t, list, "added /big")
	require.Contains(t, fmt.Sprint(list), "added /f")
}

// TestAttackRootChanges has runs leave what keeps the host from seeing what they changed: names
// that are not UTF-8, nodes, a tree that is deeper than a path may be.
func TestAttackRootChanges(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	testkit.Need(t, "python3")
	s := sandbox.New(sandbox.WithScratchRoot(newScratch(t, 16*sandbox.MiB)))
	runs.Output(t, s.With(sandbox.WithCommand("python3", "-Bc", `
import os
open("/etc/hosts", "w").write("x")
for name in b"/f\xff", b"/d\xff/f", b"/new\nline", b"/\x1b[2J":
    os.makedirs(os.path.dirname(name), exist_ok=True)
    open(name, "w")
os.mkfifo("/fifo"); os.symlink("/etc", "/link"); os.mkdir("/closed"); open("/closed/f", "w"); os.chmod("/closed", 0)
os.mkdir("/opaque"); open("/opaque/f", "w")
for name in "/opaque", "/opaque/f":
    for attribute in "opaque", "whiteouts", "whiteout", "redirect", "metacopy", "origin":
        try: os.setxattr(name, "user.overlay." + attribute, b"y")
        except OSError: pass
d = os.open("/", os.O_RDONLY)
for i in range(2100):
    os.mkdir("d", dir_fd=d)
    e = os.open("d", os.O_RDONLY, dir_fd=d)
    os.close(d)
    d = e
`)))
	list := changes(t, s)
	deep := "added " + strings.Repeat("/d", 2100)
	shallow := slices.DeleteFunc(slices.Clone(list), func(line string) bool { return strings.HasPrefix(deep, line) })
	require.Equal(t, []string{"added /\x1b[2J", "added /closed", "added /closed/f", "added /d\xff", "added /d\xff/f", "changed /etc/hosts", "added /fifo", "added /f\xff", "added /link", "added /new\nline", "added /opaque", "added /opaque/f"}, shallow)
	require.InDelta(t, 4096/2, len(list)-len(shallow), 10)
}

// TestAttackRootChangesDeep has layers and a run made for each other: the run changes what lies as
// deep as it can in all of them.
func TestAttackRootChangesDeep(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	layers := []string{testkit.BusyboxRoot(t)}
	const depth = 2042 // where the scratch has them, the files' paths are just longer than one may be
	for range 4 {
		layer := testkit.Layer(t, map[string]string{"x/": ""})
		at, err := unix.Open(layer+"/x", unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		for range depth {
			require.NoError(t, unix.Mkdirat(at, "d", 0o755))
			next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
			require.NoError(t, errors.Join(err, unix.Close(at)))
			at = next
		}
		for _, name := range []string{"f", "g"} {
			require.NoError(t, unix.Mknodat(at, name, unix.S_IFREG|0o644, 0))
		}
		require.NoError(t, unix.Close(at))
		layers = append(layers, layer)
	}
	s := sandbox.New(sandbox.WithRootfs(sandbox.LayersRootfs(layers...)), sandbox.WithUser(0, 0), sandbox.WithScratchRoot(newScratch(t, 16*sandbox.MiB)))
	runs.Output(t, s.With(sandbox.WithCommand("/bin/sh", "-c", fmt.Sprintf("set -e; cd /x; i=0; while [ $i -lt %d ]; do cd -P d; i=$((i+1)); done; echo x >f; rm g; echo x >new", depth))))
	begin := time.Now()
	at := "/x" + strings.Repeat("/d", depth)
	require.Equal(t, []string{"changed " + at + "/f", "removed " + at + "/g", "added " + at + "/new"}, changes(t, s))
	require.Less(t, time.Since(begin), testkit.Patience/10)
}

// TestAttackRootChangesRaces has a run swap directories, links, pipes and files while the host
// looks: that does not fail, and nothing is listed where it never was.
func TestAttackRootChangesRaces(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	testkit.Need(t, "python3")
	s := sandbox.New(sandbox.WithScratchRoot(newScratch(t, 4*sandbox.MiB)))
	p := runs.Start(t, s.With(sandbox.WithCommand("python3", "-Bc", `
import os, socket
os.makedirs("/other/only-here")
for i in range(50): os.makedirs("/dirs/d%d/in" % i)
def swap(make):
    for i in range(50):
        at = "/dirs/d%d" % i
        make("/new")
        os.rename(at, "/old%d" % i); os.rename("/new", at)
    for i in range(50):
        at = "/dirs/d%d" % i
        os.unlink(at); os.rename("/old%d" % i, at)
while True:
    swap(lambda at: os.symlink("../other", at)); swap(lambda at: os.symlink("d0/loop", at)); swap(os.mkfifo); swap(lambda at: open(at, "w").close())
`)))
	end := time.Now().Add(2 * time.Second)
	looks, most := 0, 0
	for deadline := testkit.Deadline(t); time.Now().Before(end) || most <= 50; looks++ {
		require.NoError(t, deadline.Err(), "%d looks, %d changes", looks, most)
		list := changes(t, s)
		most = max(most, len(list))
		for _, line := range list {
			require.False(t, strings.HasSuffix(line, "/only-here") && !strings.HasSuffix(line, " /other/only-here"), line)
		}
	}
	require.NoError(t, p.Kill())
	_, err := p.Wait()
	require.Error(t, err)
	t.Log(looks, most)
}
