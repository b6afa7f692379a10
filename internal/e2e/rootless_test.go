//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// The tests whose names contain Rootless pass for every user, even one without cgroups and without
// ids except its own.

func TestRootlessRun(t *testing.T) {
	t.Parallel()
	require.Equal(t, "hello\n1000:1000 sandbox sandbox\n/home/sandbox", runs.Output(t, runs.Shell("echo hello; echo $(id -u):$(id -g) $(id -un) $(hostname); pwd")))
	for _, ids := range [][2]int{{0, 0}, {1000, 1000}, {7, 8}, {65533, 0}} {
		got := runs.Output(t, runs.Shell("echo $(id -u):$(id -g); touch ~/x /tmp/x; stat -c %u:%g ~/x", sandbox.WithUser(ids[0], ids[1])))
		require.Equal(t, fmt.Sprintf("%d:%d\n%[1]d:%[2]d", ids[0], ids[1]), got)
	}
	result, err := runs.Shell("exit 3").Run(testkit.Deadline(t))
	require.Equal(t, 3, runs.ExitError(t, err).ExitCode)
	require.Positive(t, result.Usage.Wall)
	_, err = runs.Shell("kill -TERM $$").Run(testkit.Deadline(t))
	require.Equal(t, syscall.SIGTERM, runs.ExitError(t, err).Signal)
	_, err = sandbox.New(sandbox.WithCommand("no-such-command")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = runs.Shell("", sandbox.WithDir("/no/such/dir")).Run(testkit.Deadline(t))
	require.Equal(t, "WithDir", runs.SetupError(t, err, "/no/such/dir").Stage)
	require.Equal(t, "input", runs.Output(t, sandbox.New(sandbox.WithCommand("cat"), sandbox.WithStdin(strings.NewReader("input")))))
	require.Equal(t, "lo", runs.Output(t, runs.Shell("tail -n +3 /proc/net/dev | sed 's/^ *//; s/:.*//'")))
	require.Equal(t, "0000000000000000", runs.Output(t, runs.Shell("grep CapEff /proc/self/status | cut -f2", sandbox.WithUser(0, 0))))
	require.Equal(t, "0\n1\n2\n3", runs.Output(t, runs.Shell("ls /proc/self/fd")))
	require.Equal(t, "alive", runs.Output(t, runs.Helper("inspect")))
}

func TestRootlessCapabilities(t *testing.T) {
	t.Parallel()
	kept := sandbox.WithCapabilities("CAP_NET_BIND_SERVICE")
	for _, user := range []int{0, 1000} {
		require.Equal(t, "0000000000000400", runs.Output(t, runs.Shell("grep CapEff /proc/self/status | cut -f2", kept, sandbox.WithUser(user, user))))
	}
	_, err := sandbox.New(sandbox.WithCommand("unshare", "-U", "true")).Run(testkit.Deadline(t))
	runs.ExitError(t, err)
}

func TestRootlessHostRootfs(t *testing.T) {
	t.Parallel()
	secret := testkit.OpenDir(t) + "/secret"
	testkit.WriteFile(t, secret, "secret", 0o644)
	require.Equal(t, "sandbox", runs.Output(t, runs.Shell("ls /home")))
	require.Equal(t, "", runs.Output(t, runs.Shell("ls -d /root /srv /mnt /opt /boot /etc/shadow "+secret+" 2>/dev/null; exit 0")))
	for _, dir := range []string{"/", "/usr", "/etc", "/home", "/dev", "/proc", "/sys", "/sys/fs/cgroup"} {
		require.Equal(t, "refused", runs.Output(t, runs.Shell("touch "+dir+"/x 2>/dev/null || echo refused")), dir)
	}
}

func TestRootlessEnvironment(t *testing.T) {
	t.Parallel()
	got := runs.Output(t, sandbox.New(sandbox.WithCommand("env"), sandbox.WithEnv("A=1", "LANG=C")))
	require.ElementsMatch(t, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/home/sandbox", "USER=sandbox", "LANG=C", "A=1"}, strings.Split(got, "\n"))
}

// A file that a run makes in the caller's own directory belongs to the caller.
func TestRootlessBind(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	dir := testkit.OpenDir(t)
	require.NoError(t, os.Mkdir(dir+"/below", 0o700))
	testkit.WriteFile(t, dir+"/file", "content", 0o600)
	own := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	for _, user := range []int{1000, 0, 7} {
		got := runs.Output(t, runs.Shell("cat file; echo; stat -c %u:%g file; echo new >below/new; stat -c %u:%g below/new",
			sandbox.WithBind(dir, "/data"), sandbox.WithDir("/data"), sandbox.WithUser(user, user)))
		require.Equal(t, fmt.Sprintf("content\n%d:%[1]d\n%[1]d:%[1]d", user), got)
		require.Equal(t, own, owner(t, dir+"/below/new"))
		require.NoError(t, os.Remove(dir+"/below/new"))
	}
	require.Equal(t, "below\nfile\nrefused", runs.Output(t, runs.Shell("ls /data; touch /data/x 2>/dev/null || echo refused", sandbox.WithReadOnlyBind(dir, "/data"))))
	require.Equal(t, "contentadded", runs.Output(t, runs.Shell("printf added >>/tmp/data; cat /tmp/data", sandbox.WithBind(dir+"/file", "/tmp/data"))))
	_, err := runs.Shell("", sandbox.WithBind(dir+"/none", "/data")).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// The porters, which open directories for an ordinary user's cell and hold the files of scratches,
// are replaced if they die. Not in parallel: others boot cells.
func TestRootlessPorterDies(t *testing.T) {
	testkit.Need(t, "an ordinary user")
	dir := testkit.OpenDir(t)
	s := runs.Shell("touch /data/x", sandbox.WithBind(dir, "/data"))
	if testkit.Kernel(5, 12) {
		s = s.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFS("/files", fstest.MapFS{"f": &fstest.MapFile{Data: []byte("x"), Mode: 0o644}}))
	}
	runs.Output(t, s)
	killed := 0
	for _, pid := range testkit.ChildPIDs() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if string(line) == "/proc/self/exe\x00sandbox-forkserver\x00" {
			for _, serving := range testkit.ChildrenOf(pid) {
				require.NoError(t, syscall.Kill(serving, syscall.SIGKILL))
				killed++
			}
		}
	}
	require.Positive(t, killed)
	for range 3 {
		runs.Output(t, s)
	}
}

// An ordinary user's run can't do more to a directory than the user.
func TestRootlessForeignBind(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "an ordinary user")
	foreign := "/etc"
	if os.Geteuid() == 0 {
		foreign = testkit.OpenDir(t)
		require.NoError(t, os.Chown(foreign, 7, 7))
	}
	got := runs.Output(t, runs.Shell("touch /data/x 2>/dev/null || echo refused; cat /data/shadow 2>/dev/null || echo refused", sandbox.WithReadOnlyBind(foreign, "/data")))
	require.Equal(t, "refused\nrefused", got)
	_, err := runs.Shell("", sandbox.WithBind(foreign, "/data")).Run(testkit.Deadline(t))
	runs.SetupError(t, err, "WithBind")
}

func TestRootlessMounts(t *testing.T) {
	t.Parallel()
	got := runs.Output(t, runs.Shell("cat /tmp/a/b ~/c /etc/app.conf; stat -c '%a %u:%g' /tmp/a/b /etc/app.conf /data; head -c 100000 /dev/zero 2>/dev/null >/data/x; stat -c %s /data/x",
		sandbox.WithFile("/tmp/a/b", []byte("tmp "), 0o640), sandbox.WithFile("/home/sandbox/c", []byte("home "), 0o600),
		sandbox.WithFile("/etc/app.conf", []byte("etc\n"), 0o444), sandbox.WithTmpfs("/data", 64*sandbox.KiB)))
	require.Equal(t, "tmp home etc\n640 1000:1000\n444 1000:1000\n755 1000:1000\n65536", got)
}

func TestRootlessWritableRoot(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	mark := "sandbox-test-" + testkit.ALongTime()
	writable := sandbox.WithWritableRoot(4 * sandbox.MiB)
	script := "touch /M && mkdir /M.d && mv /M /M.d && ls /M.d; touch /etc/M; (head -c 20M /dev/zero >/x) 2>/dev/null || echo full"
	require.Equal(t, mark+"\nfull", runs.Output(t, runs.Shell(strings.ReplaceAll(script, "M", mark), writable)))
	require.Equal(t, "gone", runs.Output(t, runs.Shell("ls /"+mark+".d 2>/dev/null || echo gone", writable)))
}

func TestRootlessDirRootfs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	for _, dirs := range [][]string{nil, {"/proc", "/dev", "/tmp", "/home/sandbox"}} {
		root := testkit.BusyboxRoot(t, dirs...)
		base := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)))
		require.Equal(t, "sandbox-init\nrefused", runs.Output(t, base.With(sandbox.WithCommand("sh", "-c",
			"touch /tmp/x ~/x; cat /proc/1/comm; touch /bin/x 2>/dev/null || echo refused"))))
		require.Equal(t, "/x", runs.Output(t, base.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithCommand("sh", "-c", "touch /x; ls /x"))))
		require.NoFileExists(t, root+"/x")
	}
}

// Until it executes its command, a run is a clone of this program. A command that is a link to that
// can't reach it: CVE-2019-5736.
func TestRootlessOwnBinary(t *testing.T) {
	t.Parallel()
	root := testkit.BusyboxRoot(t)
	require.NoError(t, os.Symlink("/proc/self/exe", root+"/bin/link"))
	testkit.WriteFile(t, root+"/bin/script", "#!/proc/self/exe\n", 0o755)
	for _, name := range []string{"/proc/self/exe", "/bin/link", "/bin/script"} {
		for _, user := range []int{1000, 0} {
			_, err := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand(name), sandbox.WithUser(user, user)).Run(testkit.Deadline(t))
			require.ErrorIs(t, err, fs.ErrPermission, name)
		}
	}
}

// A run can't use up what the kernel counts for all runs together, or not at all.
func TestRootlessQuotas(t *testing.T) {
	t.Parallel()
	require.Equal(t, "16", runs.Output(t, runs.Helper("count", "inotify")))
	require.Equal(t, "64", runs.Output(t, runs.Helper("count", "pty")))
	// Some of the 512 inodes are in use, such as the root's.
	n, err := strconv.Atoi(runs.Output(t, runs.Helper("count", "file", "/space").With(sandbox.WithTmpfs("/space", sandbox.MiB))))
	require.NoError(t, err)
	require.InDelta(t, 512, n, 2)
	limits := runs.Output(t, runs.Shell("grep -E 'signals|msgqueue' /proc/self/limits"))
	require.Regexp(t, `pending signals +1024 +1024 .*\n.*msgqueue size +131072 +131072 `, limits)
	require.Equal(t, "7", runs.Output(t, runs.Shell("ulimit -Hn", sandbox.WithRlimit("nofile", 7, 7))))
}

// The set-up's own descriptors are still open when the command's working directory is entered
// (CVE-2024-21626). None leads out of the root, nor does one that the caller hands in.
func TestRootlessWorkingDirectory(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	dir := testkit.OpenDir(t)
	for fd := range 140 {
		link := fmt.Sprintf("%s/%d", dir, fd)
		require.NoError(t, os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), link))
	}
	require.NoError(t, os.Symlink("/tmp", dir+"/fine"))
	base := runs.Shell("pwd -P", sandbox.WithBind(dir, "/job"), sandbox.WithFile("/ro/secret", []byte("abc"), 0o600))
	require.Equal(t, "/tmp", runs.Output(t, base.With(sandbox.WithDir("/job/fine"))))
	for fd := range 140 {
		out, err := base.With(sandbox.WithDir(fmt.Sprintf("/job/%d", fd))).Output(testkit.Deadline(t))
		if err != nil {
			require.Equal(t, "WithDir", runs.SetupError(t, err).Stage)
		} else {
			require.Contains(t, []string{"/\n", "/job\n"}, string(out))
		}
	}
	outside, err := os.Open(dir)
	require.NoError(t, err)
	defer outside.Close()
	_, err = runs.Shell("pwd -P", sandbox.WithExtraFiles(outside), sandbox.WithDir("/proc/self/fd/3")).Run(testkit.Deadline(t))
	require.Equal(t, "WithDir", runs.SetupError(t, err).Stage)
}

func TestRootlessTimeoutAndCancel(t *testing.T) {
	t.Parallel()
	mark := testkit.ALongTime()
	script := "trap '' TERM; setsid sleep " + mark + " & while :; do sleep " + mark + "; done"
	result, err := runs.Shell(script, sandbox.WithTimeout(300*time.Millisecond)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.Equal(t, sandbox.TimedOut, result.Reason)
	ctx, cancel := context.WithTimeout(testkit.Deadline(t), 300*time.Millisecond)
	defer cancel()
	_, err = runs.Shell(script).Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, "done", runs.Output(t, runs.Shell("sleep "+mark+" & echo done")))
	testkit.RequireGone(t, mark)
}

// A limit that can't be enforced is an error that says what to do. A default that can't be enforced
// is not.
func TestRootlessLimits(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "no cgroups at hand")
	const remedy = "run as root|docker run"
	for option, o := range map[string]sandbox.Option{
		"WithMemory":    sandbox.WithMemory(64 * sandbox.MiB),
		"WithPIDs":      sandbox.WithPIDs(10),
		"WithCPUs":      sandbox.WithCPUs(0.5),
		"WithCPUWeight": sandbox.WithCPUWeight(50),
		"WithCPUSet":    sandbox.WithCPUSet("0"),
		"WithCPUTime":   sandbox.WithCPUTime(time.Second),
	} {
		_, err := runs.Shell("exit 0", o).Run(testkit.Deadline(t))
		setup := runs.SetupError(t, err, option)
		require.Regexp(t, remedy, err.Error())
		require.Equal(t, "cgroup", setup.Stage)
	}
	p := runs.Start(t, runs.Shell("exec sleep 1000"))
	err := p.Pause()
	runs.SetupError(t, err)
	require.Regexp(t, remedy, err.Error())
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.Wall)
	require.Equal(t, "100", runs.Output(t, runs.Shell("ulimit -Sn", sandbox.WithRlimit("nofile", 100, 200))))
}

func TestRootlessCell(t *testing.T) {
	t.Parallel()
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	p := runs.Start(t, runs.Shell("exec sleep 1000", sandbox.WithCell(c)))
	require.NoError(t, c.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

func TestRootlessHostNetwork(t *testing.T) {
	t.Parallel()
	host, err := os.ReadFile("/proc/net/dev")
	require.NoError(t, err)
	got := runs.Output(t, runs.Shell("wc -l </proc/net/dev", sandbox.WithNetwork(sandbox.NetworkHost)))
	require.Equal(t, fmt.Sprint(strings.Count(string(host), "\n")), got)
}

// The run's own loopback answers.
func TestRootlessPing(t *testing.T) {
	t.Parallel()
	s := runs.Helper("ping")
	require.Contains(t, runs.Output(t, s), "reply")
	require.Contains(t, runs.Output(t, s.With(sandbox.WithUser(0, 0))), "reply")
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		require.Contains(t, runs.Output(t, runs.HostUser(s)), "reply")
	}
}
