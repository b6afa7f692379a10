//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// Runs without a user namespace: as root on any machine, also if it has no user namespaces at all.

func TestNoUserNamespace(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root's power over networks")
	testNoUserNamespace(t)
}

// TestNoUserNamespacesAtAll switches user namespaces off, for a while, in a guest.
func TestNoUserNamespacesAtAll(t *testing.T) {
	testkit.Need(t, "a guest's sysctls")
	testkit.SetSysctl(t, "user/max_user_namespaces", "0")
	c, err := sandbox.NewCell()
	if err == nil {
		c.Close()
	}
	setup := runs.SetupError(t, err, "cell")
	require.Contains(t, setup.Hint, "sysctl user.max_user_namespaces=65536, or WithoutUserNamespace")
	_, err = sandbox.New(sandbox.WithCommand("true")).Run(testkit.Deadline(t)) // in a cell from before, if there is one
	require.Contains(t, runs.SetupError(t, err).Hint, "sysctl user.max_user_namespaces=65536, or WithoutUserNamespace")
	why := asOrdinaryUser(t)
	require.Contains(t, why, "sandbox: cell: ")
	require.Contains(t, why, "sysctl user.max_user_namespaces=65536, or run this program as root")
	testNoUserNamespace(t)
}

// TestDumpable sets the sysctl that would let processes of one id trace each other.
func TestDumpable(t *testing.T) {
	testkit.Need(t, "a guest's sysctls")
	testkit.SetSysctl(t, "fs/suid_dumpable", "1")
	inspect := runs.Helper("inspect")
	for _, s := range []*sandbox.Sandbox{inspect, inspect.With(sandbox.WithUser(0, 0)), runs.HostUser(inspect)} {
		require.Equal(t, "alive", runs.Output(t, s))
	}
}

// asOrdinaryUser returns why a run does not start.
func asOrdinaryUser(t *testing.T, args ...string) string {
	t.Helper()
	dir := testkit.OpenDir(t)
	require.NoError(t, os.Chown(dir, 1000, 1000))
	cmd := testkit.HelperCommand(testkit.Deadline(t), "start", args...)
	cmd.Dir = "/"
	cmd.Env = []string{testkit.HelperEnv, "PATH=" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

func TestNoUserNamespaceNeedsRoot(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	why := asOrdinaryUser(t, "without")
	require.Contains(t, why, "WithoutUserNamespace needs root")
	require.Contains(t, why, "run this program as root, or leave the option out")
}

func testNoUserNamespace(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"namespaces", hostUserNamespaces}, {"user", hostUserUser}, {"privileges", hostUserPrivileges}, {"walls", hostUserWalls},
		{"limits", hostUserLimits}, {"binds", hostUserBinds}, {"paths", hostUserPaths}, {"writable root", hostUserWritableRoot}, {"cells", hostUserCells},
	} {
		t.Run(test.name, test.run)
	}
}

func hostUserNamespaces(t *testing.T) {
	p := runs.Start(t, runs.HostUser(sandbox.New(sandbox.WithCommand("sleep", "1000"))))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d", p.PID()), &st))
	require.EqualValues(t, runs.HostID, st.Uid, "on the host too")
	require.EqualValues(t, runs.HostID+1, st.Gid)
	for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		require.NoError(t, err)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), ns))
		require.NoError(t, err)
		require.Equal(t, ns == "user", mine == its, ns)
	}
}

func hostUserUser(t *testing.T) {
	require.Equal(t, "hello 50123 50124 50124 sandbox sandbox /home/sandbox wrote",
		runs.Output(t, runs.HostUser(runs.Shell("echo hello $(id -u) $(id -g) $(id -G) $(id -un) $(hostname) $(pwd) $(touch ~/x /tmp/x /dev/shm/x && echo wrote)"))))
	require.Equal(t, "1000 1000", runs.Output(t, runs.Shell("echo $(id -u) $(id -G)", sandbox.WithoutUserNamespace())))
	require.Equal(t, "50124 50200", runs.Output(t, runs.HostUser(runs.Shell("id -G", sandbox.WithGroups(50200)))))
}

func hostUserPrivileges(t *testing.T) {
	none := strings.ReplaceAll("CapInh:M CapPrm:M CapEff:M CapBnd:M CapAmb:M NoNewPrivs:1", "M", "0000000000000000")
	// PID 1 makes the last of its own calls when the command begins.
	await := "until grep -q 'NoNewPrivs:.1' /proc/1/status; do :; done; "
	for _, pid := range []string{"1", "self"} {
		require.Equal(t, none, runs.Output(t, runs.HostUser(runs.Shell(await+"echo $(grep -E '^Cap|^NoNewPrivs' /proc/"+pid+"/status | tr -d '\\t')"))), pid)
	}
	require.Equal(t, "Uid: 65534 65534 65534 65534 Gid: 65534 65534 65534 65534 Groups:",
		runs.Output(t, runs.HostUser(runs.Shell(await+"echo $(grep -E '^[UG]id|^Groups' /proc/1/status)"))), "PID 1")
	require.Equal(t, "2", runs.Output(t, runs.HostUser(runs.Shell("grep Seccomp: /proc/self/status | cut -f2"))))
	require.Equal(t, "alive", runs.Output(t, runs.HostUser(runs.Helper("inspect"))))
	for _, call := range []string{fmt.Sprint(unix.SYS_KEYCTL), fmt.Sprint(unix.SYS_BPF)} {
		require.Equal(t, "EPERM", runs.Output(t, runs.HostUser(runs.Helper("syscall", call))))
	}
}

func hostUserWalls(t *testing.T) {
	was, err := os.ReadFile("/proc/sys/user/max_inotify_instances")
	require.NoError(t, err)
	require.Equal(t, "", runs.Output(t, runs.HostUser(runs.Shell(`for f in /* /etc/* /usr/* /proc/sys/kernel/* /proc/sys/user/* /proc/sys/vm/* /proc/self/oom_score_adj; do
		case $f in /tmp|/proc) continue;; esac
		if [ -f $f ]; then (true >>$f) 2>/dev/null && echo $f; else (true >$f/new) 2>/dev/null && echo $f; fi; done; exit 0`))), "writable")
	require.Equal(t, "sandbox-init 1 2", runs.Output(t, runs.HostUser(runs.Shell("echo $(cat /proc/1/comm) $(cd /proc; ls -d [0-9]* | head -2)"))),
		"nothing but PID 1 and the command")
	now, err := os.ReadFile("/proc/sys/user/max_inotify_instances")
	require.NoError(t, err)
	require.Equal(t, was, now, "the host's own")
	// Another process with the same id, outside, and one in another run.
	other := runs.Start(t, runs.HostUser(sandbox.New(sandbox.WithCommand("sleep", "1000"))))
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: runs.HostID, Gid: runs.HostID + 1}}
	require.NoError(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	runs.Output(t, runs.HostUser(runs.Shell(fmt.Sprintf("for pid in %d %d; do kill -9 $pid 2>/dev/null && exit 1; done; kill -9 -1; exit 0", cmd.Process.Pid, other.PID()))))
	require.NoError(t, cmd.Process.Signal(unix.Signal(0)))
	require.NoError(t, other.Signal(unix.Signal(0)))
}

func hostUserLimits(t *testing.T) {
	_, err := runs.HostUser(runs.Shell("sleep 1000", sandbox.WithTimeout(100*time.Millisecond))).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	_, err = runs.HostUser(runs.Shell("yes", sandbox.WithOutputLimit(1000))).Output(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutputLimit)
	testkit.Need(t, "freezer")
	p := runs.Start(t, runs.HostUser(runs.Shell("while :; do :; done")))
	require.NoError(t, p.Pause())
	require.NoError(t, p.Resume())
	require.NoError(t, p.Pause())
	require.NoError(t, p.Kill())
	_, err = p.Wait()
	runs.ExitError(t, err)
	testkit.Need(t, "cgroup memory")
	_, err = runs.HostUser(runs.Helper("alloc", "64").With(sandbox.WithMemory(32 * sandbox.MiB))).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrOutOfMemory)
}

// In a bind, files keep their owners.
func hostUserBinds(t *testing.T) {
	dir := testkit.OpenDir(t)
	testkit.WriteFile(t, filepath.Join(dir, "root's"), "r", 0o644)
	testkit.WriteFile(t, filepath.Join(dir, "secret"), "s", 0o600)
	own := filepath.Join(dir, "own")
	require.NoError(t, os.Mkdir(own, 0o755))
	require.NoError(t, os.Chown(own, runs.HostID, runs.HostID+1))
	script := `cd /job; stat -c %u:%g "root's" own; cat "root's" secret; (echo x >"root's") || echo refused; (echo x >new) || echo refused; echo x >own/new; chmod 4755 own/new || echo refused`
	require.Equal(t, "0:0\n50123:50124\nrrefused\nrefused\nrefused", runs.Output(t, runs.HostUser(runs.Shell("exec 2>/dev/null; "+script, sandbox.WithBind(dir, "/job")))))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(own, "new"), &st))
	require.EqualValues(t, runs.HostID, st.Uid)
	require.EqualValues(t, runs.HostID+1, st.Gid)
	require.EqualValues(t, 0o644, st.Mode&0o7777)
	require.Equal(t, "refused", runs.Output(t, runs.HostUser(runs.Shell("exec 2>/dev/null; (echo x >/job/own/y) || echo refused", sandbox.WithReadOnlyBind(dir, "/job")))))
}

// If a root's links lead into a bind, the set-up, which is root, does not write there.
func hostUserPaths(t *testing.T) {
	testkit.Need(t, "overlayfs for runs")
	root, dir := testkit.OpenDir(t), testkit.OpenDir(t)
	testkit.WriteFile(t, filepath.Join(dir, "conf"), "the host's", 0o600)
	for _, name := range []string{"proc", "dev", "tmp", "home/sandbox", "etc", "data"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, name), 0o755))
	}
	require.NoError(t, os.Symlink("/data", filepath.Join(root, "etc/app")))
	s := runs.HostUser(sandbox.New(sandbox.WithCommand("/true"), sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithWritableRoot(sandbox.MiB),
		sandbox.WithBind(dir, "/data"), sandbox.WithFile("/etc/app/conf", []byte("the run's"), 0o644)))
	_, err := s.Run(testkit.Deadline(t))
	setup := runs.SetupError(t, err)
	require.Equal(t, "WithFile /etc/app/conf", setup.Stage)
	b, err := os.ReadFile(filepath.Join(dir, "conf"))
	require.NoError(t, err)
	require.Equal(t, "the host's", string(b))
	require.Equal(t, "f:50123\ng:50123", runs.Output(t, runs.HostUser(runs.Shell("cat /tmp/a/f; stat -c %u /tmp/a/f; cat /run/g; stat -c %u /run/g",
		sandbox.WithFile("/tmp/a/f", []byte("f:"), 0o600), sandbox.WithFile("/run/g", []byte("g:"), 0o600)))))
}

func hostUserWritableRoot(t *testing.T) {
	testkit.Need(t, "overlayfs for runs")
	require.Equal(t, "x", runs.Output(t, runs.HostUser(runs.Shell("mkdir /new && echo x >/new/x && cat /new/x", sandbox.WithWritableRoot(sandbox.MiB)))))
	require.Equal(t, "0\nrefused", runs.Output(t, runs.HostUser(runs.Shell("stat -c %u /usr/bin/env; (echo x >>/usr/bin/env) 2>/dev/null || echo refused", sandbox.WithWritableRoot(sandbox.MiB)))))
}

// Both kinds of runs in parallel, and cells of either kind.
func hostUserCells(t *testing.T) {
	_, err := sandbox.New(sandbox.WithCommand("true")).Run(testkit.Deadline(t))
	both := err == nil
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := runs.Shell("id -u")
			want := "1000"
			if i%2 == 0 || !both {
				s, want = runs.HostUser(s), fmt.Sprint(runs.HostID)
			}
			out, err := s.Output(testkit.Deadline(t))
			if err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%q, not %s: %v", out, want, err)
			}
		}()
	}
	wg.Wait()
	c, err := sandbox.NewCell(sandbox.CellWithoutUserNamespace())
	require.NoError(t, err)
	require.Equal(t, "50123", runs.Output(t, runs.HostUser(runs.Shell("id -u", sandbox.WithCell(c)))))
	_, err = runs.Shell("", sandbox.WithCell(c)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithCell: the cell was made with CellWithoutUserNamespace")
	require.NoError(t, c.Close())
	if both {
		c, err := sandbox.NewCell()
		require.NoError(t, err)
		defer c.Close()
		_, err = runs.HostUser(runs.Shell("", sandbox.WithCell(c))).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, "use CellWithoutUserNamespace")
	}
}
