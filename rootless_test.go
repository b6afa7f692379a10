//go:build linux

package sandbox_test

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
)

// The tests whose names contain Rootless pass for anybody: also for a user with
// no cgroups and no ids but its own.

func TestRootlessRun(t *testing.T) {
	t.Parallel()
	require.Equal(t, "hello\n1000:1000 sandbox sandbox\n/home/sandbox", output(t, shell("echo hello; echo $(id -u):$(id -g) $(id -un) $(hostname); pwd")))
	for _, ids := range [][2]int{{0, 0}, {1000, 1000}, {7, 8}, {65533, 0}} {
		got := output(t, shell("echo $(id -u):$(id -g); touch ~/x /tmp/x; stat -c %u:%g ~/x", sandbox.WithUser(ids[0], ids[1])))
		require.Equal(t, fmt.Sprintf("%d:%d\n%[1]d:%[2]d", ids[0], ids[1]), got)
	}
	result, err := shell("exit 3").Run(deadline(t))
	require.Equal(t, 3, exitError(t, err).ExitCode)
	require.Positive(t, result.Usage.Wall)
	_, err = shell("kill -TERM $$").Run(deadline(t))
	require.Equal(t, syscall.SIGTERM, exitError(t, err).Signal)
	_, err = sandbox.New(sandbox.WithCommand("no-such-command")).Run(deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = shell("", sandbox.WithDir("/no/such/dir")).Run(deadline(t))
	require.Equal(t, "WithDir", setupError(t, err, "/no/such/dir").Stage)
	require.Equal(t, "input", output(t, sandbox.New(sandbox.WithCommand("cat"), sandbox.WithStdin(strings.NewReader("input")))))
	require.Equal(t, "lo", output(t, shell("tail -n +3 /proc/net/dev | sed 's/^ *//; s/:.*//'")))
	require.Equal(t, "0000000000000000", output(t, shell("grep CapEff /proc/self/status | cut -f2", sandbox.WithUser(0, 0))))
	require.Equal(t, "0\n1\n2\n3", output(t, shell("ls /proc/self/fd")))
	require.Equal(t, "alive", output(t, helper("inspect")))
}

func TestRootlessCapabilities(t *testing.T) {
	t.Parallel()
	kept := sandbox.WithCapabilities("CAP_NET_BIND_SERVICE")
	for _, user := range []int{0, 1000} {
		require.Equal(t, "0000000000000400", output(t, shell("grep CapEff /proc/self/status | cut -f2", kept, sandbox.WithUser(user, user))))
	}
	_, err := sandbox.New(sandbox.WithCommand("unshare", "-U", "true")).Run(deadline(t))
	exitError(t, err)
}

func TestRootlessHostRootfs(t *testing.T) {
	t.Parallel()
	secret := openDir(t) + "/secret"
	writeFile(t, secret, "secret", 0o644)
	require.Equal(t, "sandbox", output(t, shell("ls /home")))
	require.Equal(t, "", output(t, shell("ls -d /root /srv /mnt /opt /boot /etc/shadow "+secret+" 2>/dev/null; exit 0")))
	for _, dir := range []string{"/", "/usr", "/etc", "/home", "/dev", "/proc", "/sys", "/sys/fs/cgroup"} {
		require.Equal(t, "refused", output(t, shell("touch "+dir+"/x 2>/dev/null || echo refused")), dir)
	}
}

func TestRootlessEnvironment(t *testing.T) {
	t.Parallel()
	got := output(t, sandbox.New(sandbox.WithCommand("env"), sandbox.WithEnv("A=1", "LANG=C")))
	require.ElementsMatch(t, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/home/sandbox", "USER=sandbox", "LANG=C", "A=1"}, strings.Split(got, "\n"))
}

// What a run makes in the caller's own directory belongs to the caller.
func TestRootlessBind(t *testing.T) {
	t.Parallel()
	need(t, "idmapped tmpfs or an ordinary user")
	dir := openDir(t)
	require.NoError(t, os.Mkdir(dir+"/below", 0o700))
	writeFile(t, dir+"/file", "content", 0o600)
	own := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	for _, user := range []int{1000, 0, 7} {
		got := output(t, shell("cat file; echo; stat -c %u:%g file; echo new >below/new; stat -c %u:%g below/new",
			sandbox.WithBind(dir, "/data"), sandbox.WithDir("/data"), sandbox.WithUser(user, user)))
		require.Equal(t, fmt.Sprintf("content\n%d:%[1]d\n%[1]d:%[1]d", user), got)
		require.Equal(t, own, owner(t, dir+"/below/new"))
		require.NoError(t, os.Remove(dir+"/below/new"))
	}
	require.Equal(t, "below\nfile\nrefused", output(t, shell("ls /data; touch /data/x 2>/dev/null || echo refused", sandbox.WithReadOnlyBind(dir, "/data"))))
	require.Equal(t, "contentadded", output(t, shell("printf added >>/tmp/data; cat /tmp/data", sandbox.WithBind(dir+"/file", "/tmp/data"))))
	_, err := shell("", sandbox.WithBind(dir+"/none", "/data")).Run(deadline(t))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// The processes that open directories for an ordinary user's cell, and that have the files of
// others, are replaced if they die. Not in parallel: others boot cells.
func TestRootlessPorterDies(t *testing.T) {
	need(t, "an ordinary user")
	dir := openDir(t)
	s := shell("touch /data/x", sandbox.WithBind(dir, "/data"))
	if kernel(5, 12)() {
		s = s.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFS("/files", fstest.MapFS{"f": &fstest.MapFile{Data: []byte("x"), Mode: 0o644}}))
	}
	output(t, s)
	killed := 0
	for _, pid := range childPIDs() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if string(line) == "/proc/self/exe\x00sandbox-forkserver\x00" {
			for _, serving := range pidsOf(childrenOf(pid)) {
				require.NoError(t, syscall.Kill(serving, syscall.SIGKILL))
				killed++
			}
		}
	}
	require.Positive(t, killed)
	for range 3 {
		output(t, s)
	}
}

// An ordinary user's run can't do more to a directory than the user.
func TestRootlessForeignBind(t *testing.T) {
	t.Parallel()
	need(t, "an ordinary user")
	foreign := "/etc"
	if os.Geteuid() == 0 {
		foreign = openDir(t)
		require.NoError(t, os.Chown(foreign, 7, 7))
	}
	got := output(t, shell("touch /data/x 2>/dev/null || echo refused; cat /data/shadow 2>/dev/null || echo refused", sandbox.WithReadOnlyBind(foreign, "/data")))
	require.Equal(t, "refused\nrefused", got)
	_, err := shell("", sandbox.WithBind(foreign, "/data")).Run(deadline(t))
	setupError(t, err, "WithBind")
}

func TestRootlessMounts(t *testing.T) {
	t.Parallel()
	got := output(t, shell("cat /tmp/a/b ~/c /etc/app.conf; stat -c '%a %u:%g' /tmp/a/b /etc/app.conf /data; head -c 100000 /dev/zero 2>/dev/null >/data/x; stat -c %s /data/x",
		sandbox.WithFile("/tmp/a/b", []byte("tmp "), 0o640), sandbox.WithFile("/home/sandbox/c", []byte("home "), 0o600),
		sandbox.WithFile("/etc/app.conf", []byte("etc\n"), 0o444), sandbox.WithTmpfs("/data", 64*sandbox.KiB)))
	require.Equal(t, "tmp home etc\n640 1000:1000\n444 1000:1000\n755 1000:1000\n65536", got)
}

func TestRootlessWritableRoot(t *testing.T) {
	t.Parallel()
	need(t, "overlayfs for runs")
	mark := "sandbox-test-" + aLongTime()
	writable := sandbox.WithWritableRoot(4 * sandbox.MiB)
	script := "touch /M && mkdir /M.d && mv /M /M.d && ls /M.d; touch /etc/M; (head -c 20M /dev/zero >/x) 2>/dev/null || echo full"
	require.Equal(t, mark+"\nfull", output(t, shell(strings.ReplaceAll(script, "M", mark), writable)))
	require.Equal(t, "gone", output(t, shell("ls /"+mark+".d 2>/dev/null || echo gone", writable)))
}

func TestRootlessDirRootfs(t *testing.T) {
	t.Parallel()
	need(t, "overlayfs for runs")
	for _, dirs := range [][]string{nil, {"/proc", "/dev", "/tmp", "/home/sandbox"}} {
		root := busyboxRoot(t, dirs...)
		base := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)))
		require.Equal(t, "sandbox-init\nrefused", output(t, base.With(sandbox.WithCommand("sh", "-c",
			"touch /tmp/x ~/x; cat /proc/1/comm; touch /bin/x 2>/dev/null || echo refused"))))
		require.Equal(t, "/x", output(t, base.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithCommand("sh", "-c", "touch /x; ls /x"))))
		require.NoFileExists(t, root+"/x")
	}
}

// Until it executes its command, a run is a clone of this program. A command that is a link to that gets nothing
// of it: CVE-2019-5736.
func TestRootlessOwnBinary(t *testing.T) {
	t.Parallel()
	root := busyboxRoot(t)
	require.NoError(t, os.Symlink("/proc/self/exe", root+"/bin/link"))
	writeFile(t, root+"/bin/script", "#!/proc/self/exe\n", 0o755)
	for _, name := range []string{"/proc/self/exe", "/bin/link", "/bin/script"} {
		for _, user := range []int{1000, 0} {
			_, err := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand(name), sandbox.WithUser(user, user)).Run(deadline(t))
			require.ErrorIs(t, err, fs.ErrPermission, name)
		}
	}
}

// What the kernel counts for all runs together, or not at all, no run can use up.
func TestRootlessQuotas(t *testing.T) {
	t.Parallel()
	require.Equal(t, "16", output(t, helper("count", "inotify")))
	require.Equal(t, "64", output(t, helper("count", "pty")))
	// Of 512 inodes some are taken: the root's own, say.
	n, err := strconv.Atoi(output(t, helper("count", "file", "/space").With(sandbox.WithTmpfs("/space", sandbox.MiB))))
	require.NoError(t, err)
	require.InDelta(t, 512, n, 2)
	limits := output(t, shell("grep -E 'signals|msgqueue' /proc/self/limits"))
	require.Regexp(t, `pending signals +1024 +1024 .*\n.*msgqueue size +131072 +131072 `, limits)
	require.Equal(t, "7", output(t, shell("ulimit -Hn", sandbox.WithRlimit("nofile", 7, 7))))
}

// The set-up's own descriptors are still open when the command's working directory is entered: CVE-2024-21626. None
// leads out of the root. One that would, because the caller hands it in, does not either.
func TestRootlessWorkingDirectory(t *testing.T) {
	t.Parallel()
	need(t, "idmapped tmpfs or an ordinary user")
	dir := openDir(t)
	for fd := range 140 {
		link := fmt.Sprintf("%s/%d", dir, fd)
		require.NoError(t, os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), link))
	}
	require.NoError(t, os.Symlink("/tmp", dir+"/fine"))
	base := shell("pwd -P", sandbox.WithBind(dir, "/job"), sandbox.WithFile("/ro/secret", []byte("abc"), 0o600))
	require.Equal(t, "/tmp", output(t, base.With(sandbox.WithDir("/job/fine"))))
	for fd := range 140 {
		out, err := base.With(sandbox.WithDir(fmt.Sprintf("/job/%d", fd))).Output(deadline(t))
		if err != nil {
			require.Equal(t, "WithDir", setupError(t, err).Stage)
		} else {
			require.Contains(t, []string{"/\n", "/job\n"}, string(out))
		}
	}
	outside, err := os.Open(dir)
	require.NoError(t, err)
	defer outside.Close()
	_, err = shell("pwd -P", sandbox.WithExtraFiles(outside), sandbox.WithDir("/proc/self/fd/3")).Run(deadline(t))
	require.Equal(t, "WithDir", setupError(t, err).Stage)
}

func TestRootlessTimeoutAndCancel(t *testing.T) {
	t.Parallel()
	mark := aLongTime()
	script := "trap '' TERM; setsid sleep " + mark + " & while :; do sleep " + mark + "; done"
	result, err := shell(script, sandbox.WithTimeout(300*time.Millisecond)).Run(deadline(t))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
	require.Equal(t, sandbox.TimedOut, result.Reason)
	ctx, cancel := context.WithTimeout(deadline(t), 300*time.Millisecond)
	defer cancel()
	_, err = shell(script).Run(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, "done", output(t, shell("sleep "+mark+" & echo done")))
	requireGone(t, mark)
}

// A limit that can't be enforced is an error that says what to do; a default that can't be is not.
func TestRootlessLimits(t *testing.T) {
	t.Parallel()
	need(t, "no cgroups at hand")
	const remedy = "run as root|docker run"
	for option, o := range map[string]sandbox.Option{
		"WithMemory":    sandbox.WithMemory(64 * sandbox.MiB),
		"WithPIDs":      sandbox.WithPIDs(10),
		"WithCPUs":      sandbox.WithCPUs(0.5),
		"WithCPUWeight": sandbox.WithCPUWeight(50),
		"WithCPUSet":    sandbox.WithCPUSet("0"),
		"WithCPUTime":   sandbox.WithCPUTime(time.Second),
	} {
		_, err := shell("exit 0", o).Run(deadline(t))
		setup := setupError(t, err, option)
		require.Regexp(t, remedy, err.Error())
		require.Equal(t, "cgroup", setup.Stage)
	}
	p := start(t, shell("exec sleep 1000"))
	err := p.Pause()
	setupError(t, err)
	require.Regexp(t, remedy, err.Error())
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.Wall)
	require.Equal(t, "100", output(t, shell("ulimit -Sn", sandbox.WithRlimit("nofile", 100, 200))))
}

func TestRootlessCell(t *testing.T) {
	t.Parallel()
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	p := start(t, shell("exec sleep 1000", sandbox.WithCell(c)))
	require.NoError(t, c.Close())
	_, err = p.Wait()
	require.ErrorIs(t, err, sandbox.ErrCellLost)
}

func TestRootlessHostNetwork(t *testing.T) {
	t.Parallel()
	host, err := os.ReadFile("/proc/net/dev")
	require.NoError(t, err)
	got := output(t, shell("wc -l </proc/net/dev", sandbox.WithNetwork(sandbox.NetworkHost)))
	require.Equal(t, fmt.Sprint(strings.Count(string(host), "\n")), got)
}

// The run's own loopback answers.
func TestRootlessPing(t *testing.T) {
	t.Parallel()
	s := helper("ping")
	require.Contains(t, output(t, s), "reply")
	require.Contains(t, output(t, s.With(sandbox.WithUser(0, 0))), "reply")
	if asRoot() && effective(unix.CAP_NET_ADMIN) {
		require.Contains(t, output(t, hostUser(s)), "reply")
	}
}
