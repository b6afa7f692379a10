//go:build linux

package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("swap", swapHelper) }

// points are the mount points in a root that an attacker swaps with links while runs start.
// bindPoints are those in a bind.
var (
	points     = []string{"proc", "dev", "tmp", "home", "home/sandbox", "etc", "data", "data/below"}
	bindPoints = []string{"below", "deep", "deep/more"}
)

// swapper exchanges the directories in root with links and back, until done returns true:
// CVE-2021-30465, CVE-2025-31133. Each link leads to one target after the other.
func swapper(root string, points, targets []string, done func() bool) error {
	for i := 0; !done(); i++ {
		for k, p := range points {
			if err := unix.Unlink(alternative(root, p)); err == nil || errors.Is(err, unix.ENOENT) { // not while it is the directory
				_ = os.Symlink(targets[(i/2+k)%len(targets)], alternative(root, p))
			}
			if err := exchange(root, p); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		if i%2 == 1 { // for a moment everything is as it was
			time.Sleep(time.Duration(i%10) * 200 * time.Microsecond)
		}
	}
	return nil
}

// exchange swaps a point with its alternative. It is not misled itself by what has been swapped on
// the way.
func exchange(root, p string) error {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	names := strings.Split(p, "/")
	for _, name := range names[:len(names)-1] {
		if err != nil {
			break
		}
		above := dir
		dir, err = unix.Openat(above, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		unix.Close(above)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return nil // it is a link now
	} else if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Renameat2(dir, names[len(names)-1], unix.AT_FDCWD, alternative(root, p), unix.RENAME_EXCHANGE)
}

func alternative(root, point string) string {
	return filepath.Join(root, "alt-"+strings.ReplaceAll(point, "/", "-"))
}

// swapHelper is the attacker in a run of its own, which has the root of others as a writable bind.
func swapHelper(args []string) error {
	go func() { _ = swapper(args[1], bindPoints, args[2:], func() bool { return false }) }()
	return swapper(args[0], points, args[2:], func() bool { return false })
}

const canary = "the host's secret"

// canaryDir returns a directory of the host that looks like a root, so that a process that is led
// there finds what it looks for.
func canaryDir(t *testing.T) string {
	dir := testkit.OpenDir(t)
	for _, p := range slices.Concat([]string{"."}, points, bindPoints) {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, p), 0o777))
		require.NoError(t, os.Chmod(filepath.Join(dir, p), 0o777))
		testkit.WriteFile(t, filepath.Join(dir, p, "secret"), canary, 0o666)
	}
	return dir
}

// However links are swapped in a root, or in a bind, while runs start: nothing of the host is read
// or changed.
func TestAttackRaces(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	rounds := 500
	if testkit.InGuest {
		rounds = 40
	}
	for name, attack := range map[string]func(t *testing.T, root, bind string, targets []string){
		"by the host": func(t *testing.T, root, bind string, targets []string) {
			stop, stopped := context.WithCancel(t.Context())
			ended := make(chan error)
			done := func() bool { return stop.Err() != nil }
			go func() { ended <- swapper(root, points, targets, done) }()
			go func() { ended <- swapper(bind, bindPoints, targets, done) }()
			t.Cleanup(func() { stopped(); require.NoError(t, errors.Join(<-ended, <-ended)) })
		},
		"by a run": func(t *testing.T, root, bind string, targets []string) {
			runs.Start(t, runs.Helper("swap", append([]string{"/root-of-others", "/bind-of-others"}, targets...)...).With(
				sandbox.WithBind(root, "/root-of-others"), sandbox.WithBind(bind, "/bind-of-others")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			secret := canaryDir(t)
			root := testkit.BusyboxRoot(t, "/proc", "/dev", "/tmp", "/home/sandbox", "/etc", "/data/below")
			bind := testkit.OpenDir(t)
			require.NoError(t, testkit.Mkdirs(bind, "/below", "/deep/more"))
			before := snapshot(t, secret)
			attack(t, root, bind, []string{secret, "../../../../../../../.." + secret, "/proc/self/fd/3", "/proc/1/root" + secret, "/proc/self/cwd", "alt-tmp", secret + "/tmp"})
			requireLedAstray(t, root, points)
			requireLedAstray(t, bind, bindPoints)
			c, err := sandbox.NewCell()
			require.NoError(t, err)
			mounts := strayMounts(t, c, secret, root, bind)
			raceRuns(t, rounds, root, bind, c)
			require.Equal(t, before, snapshot(t, secret))
			require.Equal(t, mounts, strayMounts(t, c, secret, root, bind))
			require.NoError(t, c.Close())
		})
	}
}

// requireLedAstray requires that following the links leads to the host at every point.
func requireLedAstray(t *testing.T, root string, points []string) {
	for _, p := range points {
		testkit.Eventually(t, p+" leads to the host", func() bool {
			b, _ := os.ReadFile(filepath.Join(root, p, "secret"))
			return string(b) == canary
		})
	}
}

// strayMounts returns what is mounted on the host in the given directories, and in the cell outside
// of the places of templates. There should be no more after runs have started than before.
func strayMounts(t *testing.T, c *sandbox.Cell, dirs ...string) (list []string) {
	for _, at := range testkit.MountPoints() {
		for _, dir := range dirs {
			if strings.Contains(at, dir) {
				list = append(list, at)
			}
		}
	}
	p := runs.Start(t, runs.Shell("sleep 1000", sandbox.WithCell(c)))
	defer p.Wait()
	defer p.Kill()
	forkServer := parent(t, parent(t, p.PID()))
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", forkServer))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if at := strings.Fields(line)[4]; !strings.HasPrefix(at, "/cell/templates/") {
			list = append(list, at)
		}
	}
	require.Contains(t, list, "/proc")
	return list
}

func parent(t *testing.T, pid int) (parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(b), "\nPPid:\t")
	_, err = fmt.Sscan(rest, &parent)
	require.NoError(t, err)
	return parent
}

// raceRuns starts runs in the root and with the bind. Those that start see nothing of the host's.
func raceRuns(t *testing.T, rounds int, root, bind string, c *sandbox.Cell) {
	base := sandbox.New(sandbox.WithCell(c), sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithTmpfs("/data/below", sandbox.MiB),
		sandbox.WithFile("/etc/app.conf", []byte("x"), 0o644), sandbox.WithBind(bind, "/data"),
		sandbox.WithCommand("/bin/busybox", "sh", "-c", `cd /; for d in proc dev tmp home etc data data/below data/deep data/deep/more home/sandbox; do cat $d/secret; echo x >$d/mark; done 2>/dev/null
			read comm </proc/1/comm && echo "$comm"; test -c /dev/null && test ! -s /proc/kcore && echo masked`))
	nested := testkit.OpenDir(t)
	variants := []*sandbox.Sandbox{base, base.With(sandbox.WithReadOnlyBind(bind, "/home/sandbox")),
		base.With(sandbox.WithTmpfs("/data/deep/more", sandbox.MiB)), base.With(sandbox.WithBind(nested, "/data/deep"), sandbox.WithReadOnlyBind(nested, "/data/deep/more"))}
	if testkit.AsRoot() || testkit.Kernel(5, 11) {
		variants = append(variants, base.With(sandbox.WithWritableRoot(sandbox.MiB)))
	}
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		hostIDs, err := sandbox.NewCell(sandbox.CellWithoutUserNamespace())
		require.NoError(t, err)
		defer func() { require.NoError(t, hostIDs.Close()) }()
		variants = append(variants, runs.HostUser(variants[len(variants)-1]).With(sandbox.WithCell(hostIDs)))
	}
	var mu sync.Mutex
	started := 0
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := w; i < rounds; i += 4 {
				s := variants[i%len(variants)]
				if i%16 == w { // another template
					s = s.With(sandbox.WithTmpfs(fmt.Sprintf("/t%d", i), sandbox.MiB))
				}
				out, err := s.Output(testkit.Deadline(t))
				if err != nil && !errors.As(err, new(*sandbox.ExitError)) {
					var setup *sandbox.SetupError
					if !errors.As(err, &setup) {
						t.Errorf("run %d: %v", i, err)
					}
					continue
				}
				if strings.Contains(string(out), canary) {
					t.Errorf("run %d read the secret: %q", i, out)
				}
				if strings.Contains(string(out), "sandbox-init\n") && !strings.Contains(string(out), "masked") {
					t.Errorf("run %d sees an uncovered /proc, or no device: %q", i, out)
				}
				mu.Lock()
				started++
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	t.Logf("%d of %d runs started", started, rounds)
	require.Positive(t, started)
}

// snapshot returns everything about a tree that an attack could change.
func snapshot(t *testing.T, dir string) (list []string) {
	for _, path := range testkit.Tree(t, dir) {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		content := ""
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			content = string(b)
		}
		list = append(list, fmt.Sprintf("%s %o %d:%d %d %q", path, st.Mode, st.Uid, st.Gid, st.Mtim.Nano(), content))
	}
	return list
}
