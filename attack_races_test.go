//go:build linux

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
)

func init() { helpers["swap"] = swapHelper }

// points are the mount points that an attacker swaps with links while runs start.
var points = []string{"proc", "dev", "tmp", "home", "home/sandbox", "etc", "data", "data/below"}

// swapper exchanges the directories in root with links to elsewhere and back, until done says so: CVE-2021-30465, CVE-2025-31133.
func swapper(root string, targets []string, done func() bool) error {
	for i, p := range points {
		_ = os.Remove(alternative(root, p))
		if err := os.Symlink(targets[i%len(targets)], alternative(root, p)); err != nil {
			return err
		}
	}
	for i := 0; !done(); i++ {
		for _, p := range points {
			err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, p), unix.AT_FDCWD, alternative(root, p), unix.RENAME_EXCHANGE)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		time.Sleep(time.Duration(i%5) * 100 * time.Microsecond) // now and then all is for a moment as it was
	}
	return nil
}

func alternative(root, point string) string {
	return filepath.Join(root, "alt-"+strings.ReplaceAll(point, "/", "-"))
}

// swapHelper is the attacker in a run of its own, which got the root of others as a writable bind.
func swapHelper(args []string) error {
	return swapper(args[0], args[1:], func() bool { return false })
}

const canary = "the host's secret"

// canaryDir is a directory of the host that looks like a root, so that whoever is led there finds what he looks for.
func canaryDir(t *testing.T) string {
	dir := openDir(t)
	for _, p := range append([]string{"."}, points...) {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, p), 0o777))
		require.NoError(t, os.Chmod(filepath.Join(dir, p), 0o777))
		writeFile(t, filepath.Join(dir, p, "secret"), canary, 0o666)
	}
	return dir
}

// However links are swapped in a root, or in what is bound, while runs start: nothing of the host is read or changed.
func TestAttackRaces(t *testing.T) {
	t.Parallel()
	need(t, "idmapped tmpfs or an ordinary user")
	rounds := 1000
	if inGuest() {
		rounds = 40
	}
	for name, attack := range map[string]func(t *testing.T, root string, targets []string){
		"by the host": func(t *testing.T, root string, targets []string) {
			stop, stopped := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- swapper(root, targets, func() bool { return stop.Err() != nil }) }()
			t.Cleanup(func() { stopped(); require.NoError(t, <-ended) })
		},
		"by a run": func(t *testing.T, root string, targets []string) {
			start(t, helper("swap", append([]string{"/root-of-others"}, targets...)...).With(sandbox.WithBind(root, "/root-of-others")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			secret := canaryDir(t)
			root := busyboxRoot(t, "/proc", "/dev", "/tmp", "/home/sandbox", "/etc", "/data/below")
			bind := openDir(t)
			require.NoError(t, mkdirs(bind, "/below"))
			before := snapshot(t, secret)
			attack(t, root, []string{secret, "../../../../../../../.." + secret, "/proc/self/fd/3", "/proc/1/root" + secret, "/proc/self/cwd", "alt-tmp", secret + "/tmp"})
			eventually(t, "whoever follows the links is led to the host", func() bool {
				b, _ := os.ReadFile(filepath.Join(root, points[0], "secret"))
				return string(b) == canary
			})
			raceRuns(t, rounds, root, bind)
			require.Equal(t, before, snapshot(t, secret))
		})
	}
}

// raceRuns starts runs in the root. Those that start see nothing of the host's.
func raceRuns(t *testing.T, rounds int, root, bind string) {
	base := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithTmpfs("/data/below", sandbox.MiB),
		sandbox.WithFile("/etc/app.conf", []byte("x"), 0o644), sandbox.WithBind(bind, "/data"),
		sandbox.WithCommand("/bin/busybox", "sh", "-c", `cd /; for d in proc dev tmp home etc data data/below home/sandbox; do cat $d/secret; echo x >$d/mark; done 2>/dev/null
			read comm </proc/1/comm && echo "$comm"; test -c /dev/null && test ! -s /proc/kcore && echo masked`))
	variants := []*sandbox.Sandbox{base, base.With(sandbox.WithReadOnlyBind(bind, "/home/sandbox"))}
	if asRoot() || kernel(5, 11)() {
		variants = append(variants, base.With(sandbox.WithWritableRoot(sandbox.MiB)))
	}
	if asRoot() && effective(unix.CAP_NET_ADMIN) {
		variants = append(variants, hostUser(variants[len(variants)-1]))
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
				out, err := s.Output(deadline(t))
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

// snapshot is everything about a tree that an attack could change.
func snapshot(t *testing.T, dir string) (list []string) {
	for _, path := range tree(t, dir) {
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
