//go:build linux

package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// The tests here follow published vulnerabilities of other tools. SECURITY.md lists them, with
// those that are tested elsewhere.

// hostileRoots change a root so that a process that mounts, opens or makes something in it by name
// is led to the host, or past a mask.
var hostileRoots = map[string]func(t *testing.T, root, host string){
	// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642
	"/proc is a link to the host":    linked("/proc"),
	"/proc is a link within":         func(t *testing.T, root, _ string) { link(t, root, "/proc", "tmp") },
	"/proc is a link to what is /..": func(t *testing.T, root, host string) { link(t, root, "/proc", "../../../../.."+host) },
	// CVE-2019-16884, CVE-2025-52881
	"/proc has files of its own": func(t *testing.T, root, _ string) {
		for _, name := range []string{"self/attr/current", "self/attr/exec", "self/uid_map", "1/comm", "sys/kernel/core_pattern", "kcore", "locks"} {
			require.NoError(t, os.MkdirAll(filepath.Dir(root+"/proc/"+name), 0o777))
			testkit.WriteFile(t, root+"/proc/"+name, "made up", 0o666)
		}
	},
	// CVE-2025-31133
	"/dev/null is a link to a sysctl": func(t *testing.T, root, _ string) { link(t, root, "/dev/null", "/proc/sys/kernel/core_pattern") },
	"/dev/null is a file":             func(t *testing.T, root, _ string) { testkit.WriteFile(t, root+"/dev/null", "made up", 0o666) },
	// CVE-2025-52565
	"/dev/console and /dev/pts are links": func(t *testing.T, root, host string) {
		link(t, root, "/dev/console", "/proc/sysrq-trigger")
		link(t, root, "/dev/pts", host)
		link(t, root, "/dev/shm", host)
	},
	// CVE-2026-41579
	"/dev is a link to the host":  linked("/dev"),
	"/dev is a relative link":     func(t *testing.T, root, host string) { link(t, root, "/dev", "../../../../../.."+host) },
	"/tmp is a link to the host":  linked("/tmp"),
	"/home is a link to the host": linked("/home"),
	"/etc is a link to the host":  linked("/etc"),
	"all of them are":             linked("/proc", "/dev", "/tmp", "/home", "/etc"),
}

func linked(names ...string) func(t *testing.T, root, host string) {
	return func(t *testing.T, root, host string) {
		for _, name := range names {
			link(t, root, name, host)
		}
	}
}

func link(t *testing.T, root, name, to string) {
	require.NoError(t, os.RemoveAll(root+name))
	require.NoError(t, os.Symlink(to, root+name))
}

// Whatever a root has at the places where the library mounts, the run gets what it should have
// there, or does not start. The host is not changed.
func TestAttackRootLinks(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	const look = `echo x >/tmp/x; echo x >/home/sandbox/x; echo x >/dev/shm/x; echo x >/etc/app.conf
		read name </proc/1/comm && test "$name" = sandbox-init && test -d /proc/self/task && test -c /dev/null && test ! -s /proc/kcore && test ! -s /proc/locks && test -c /dev/pts/ptmx && ! cat /proc/self/attr/secret && echo good`
	for name, attack := range hostileRoots {
		t.Run(name, func(t *testing.T) {
			host := canaryDir(t)
			require.NoError(t, testkit.Mkdirs(host, "/pts", "/shm"))
			for _, name := range []string{"ptmx", "null", "console", "kcore", "app.conf", "passwd"} {
				testkit.WriteFile(t, filepath.Join(host, name), canary, 0o666)
			}
			root := testkit.BusyboxRoot(t, "/proc", "/dev/pts", "/dev/shm", "/tmp", "/home/sandbox", "/etc")
			attack(t, root, host)
			before := snapshot(t, host)
			base := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithDir("/"), sandbox.WithFile("/etc/app.conf", []byte("ours"), 0o644),
				sandbox.WithCommand("/bin/busybox", "sh", "-c", look))
			for _, opts := range [][]sandbox.Option{nil, {sandbox.WithUser(0, 0)}, {sandbox.WithWritableRoot(sandbox.MiB)}} {
				if len(opts) > 0 && !testkit.Kernel(5, 11) {
					continue
				}
				out, err := base.With(opts...).Output(testkit.Deadline(t))
				if errors.As(err, new(*sandbox.SetupError)) {
					t.Log("refused:", err)
				} else {
					require.Equal(t, "good\n", string(out), "%v", err)
				}
				require.NotContains(t, string(out), canary)
			}
			require.Equal(t, before, snapshot(t, host))
		})
	}
}

// Nothing can be reached by name on the host's network: CVE-2020-15257 was an abstract socket to
// which containers on that network could connect. The kernel gives this process's end of each run's
// socket such a name, because this process wants to know the sender (unix(7), SO_PASSCRED), but a
// connected pair takes no connections.
func TestAttackAbstractSockets(t *testing.T) {
	p := runs.Start(t, sandbox.New(sandbox.WithCommand("sleep", "1000"), sandbox.WithNetwork(sandbox.NetworkHost)))
	server := parent(t, parent(t, p.PID()))
	l, err := net.Listen("unix", "@sandbox-test-"+testkit.ALongTime())
	require.NoError(t, err)
	defer l.Close()
	names := namedSockets(t, os.Getpid(), server, parent(t, server))
	require.Contains(t, names, l.Addr().String())
	require.Equal(t, l.Addr().String(), runs.Output(t, runs.Helper("connect", names...).With(sandbox.WithNetwork(sandbox.NetworkHost))), "the control, and no other")
}

func init() { testkit.AddHelper("connect", connectHelper) }

// connectHelper prints those of the sockets that take a connection or a message.
func connectHelper(names []string) error {
	for _, name := range names {
		for _, network := range []string{"unix", "unixgram", "unixpacket"} {
			if c, err := net.Dial(network, name); err == nil {
				c.Close()
				fmt.Println(name)
			}
		}
	}
	return nil
}

// namedSockets returns the named sockets of the processes, as far as this one may inspect them.
func namedSockets(t *testing.T, pids ...int) (names []string) {
	have := map[string]bool{}
	for _, pid := range pids {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		require.NoError(t, err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil {
				have[to] = true
			}
		}
	}
	b, err := os.ReadFile("/proc/net/unix")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 7 && have["socket:["+f[6]+"]"] {
			names = append(names, f[7])
		}
	}
	return names
}

// Large data is passed on as a whole, or refused: in CVE-2021-43784 a length did not fit its field,
// and what followed was read as something else. The cell's other runs notice nothing.
func TestAttackLengths(t *testing.T) {
	t.Parallel()
	neighbour := startEchoing(t)
	long := func(n int) string { return strings.Repeat("x", n) }
	var env []string
	var mounts, files []sandbox.Option
	for i := range 200 {
		env = append(env, fmt.Sprintf("V%d=%s", i, long(8000)))
		mounts = append(mounts, sandbox.WithTmpfs(fmt.Sprintf("/m%d", i), sandbox.MiB))
		files = append(files, sandbox.WithFile(fmt.Sprintf("/f/%s%d", long(200), i), []byte(long(2000)), 0o644))
	}
	for name, test := range map[string]struct {
		run  *sandbox.Sandbox
		want string // if it is not refused
	}{
		"argument":          {sandbox.New(sandbox.WithCommand("sh", "-c", "echo ${#1}", "sh", long(1<<16))), "65536"},
		"larger argument":   {sandbox.New(sandbox.WithCommand("sh", "-c", "echo ${#1}", "sh", long(1<<16+1))), "65537"},
		"largest argument":  {sandbox.New(sandbox.WithCommand("sh", "-c", "echo ${#1}", "sh", long(1<<17))), "131072"},
		"arguments":         {sandbox.New(sandbox.WithCommand("sh", append([]string{"-c", "echo $#", "sh"}, strings.Split(long(70_000), "")...)...)), "70000"},
		"environment":       {runs.Shell("echo ${#V199}", sandbox.WithEnv(env...)), "8000"},
		"too much of it":    {runs.Shell("echo ${#A}", sandbox.WithEnv("A="+long(16<<20))), fmt.Sprint(16 << 20)},
		"name of a command": {sandbox.New(sandbox.WithCommand("/" + long(70_000))), "nothing"},
		"directory":         {runs.Shell("pwd", sandbox.WithDir("/"+long(70_000))), "nothing"},
		"mount point":       {runs.Shell("true", sandbox.WithTmpfs("/"+long(70_000), sandbox.MiB)), "nothing"},
		"mounts":            {runs.Shell("grep -c ' /m' /proc/self/mounts", mounts...), "200"},
		"files":             {runs.Shell("cat /f/* | wc -c", files...), "400000"},
		"an option":         {sandbox.New(sandbox.WithCommand("--version")), "nothing"}, // CVE-2024-32462
	} {
		t.Run(name, func(t *testing.T) {
			out, err := test.run.Output(testkit.Deadline(t))
			if err != nil {
				require.False(t, errors.Is(err, sandbox.ErrCellLost), "%v", err)
				require.False(t, errors.As(err, new(*sandbox.ExitError)), "it ran, in some way: %v", err)
				t.Log("refused:", err.Error()[:min(200, len(err.Error()))])
			} else {
				require.Equal(t, test.want, strings.TrimSpace(string(out)))
			}
			neighbour.requireAlive(t)
		})
	}
}

// Nothing of a root is loaded into, or executed by, a process outside of the run: CVE-2019-14271,
// where the host's tool loaded a library of the container.
func TestAttackLibraries(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	root := testkit.BusyboxRoot(t, "/proc", "/dev", "/tmp", "/home/sandbox", "/etc", "/lib/x86_64-linux-gnu", "/usr/lib")
	bait := func(dir string) {
		for _, name := range []string{"libnss_files.so.2", "libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"} {
			testkit.WriteFile(t, filepath.Join(root, dir, name), "bait", 0o755)
		}
	}
	bait("lib")
	bait("lib/x86_64-linux-gnu")
	bait("usr/lib")
	testkit.WriteFile(t, root+"/etc/ld.so.preload", "/lib/libc.so.6\n", 0o644)
	testkit.WriteFile(t, root+"/etc/passwd", "sandbox:x:0:0::/:/bin/sh\n", 0o644)
	p := runs.Start(t, sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand("/bin/busybox", "sh", "-c", "while :; do /bin/busybox true; done")))
	init := parent(t, p.PID())
	for _, pid := range []int{os.Getpid(), init, parent(t, init), parent(t, parent(t, init))} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)) // ordinary users may only read this process's own
		if !errors.Is(err, fs.ErrPermission) {
			require.NoError(t, err)
		}
		require.NotContains(t, string(b), root)
		require.NotContains(t, string(b), "libnss")
	}
}

// Cleaning up after a run is not misled by links that have replaced its mount points:
// CVE-2024-23652.
func TestAttackCleanUp(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	host, dir, nested := canaryDir(t), testkit.OpenDir(t), testkit.OpenDir(t)
	require.NoError(t, testkit.Mkdirs(dir, "/below", "/deep/more"))
	before := snapshot(t, host)
	in, hold, err := os.Pipe()
	require.NoError(t, err)
	defer hold.Close()
	p := runs.Start(t, runs.Shell("cat", sandbox.WithBind(dir, "/data"), sandbox.WithTmpfs("/data/below", sandbox.MiB), sandbox.WithBind(nested, "/data/deep/more"),
		sandbox.WithStdin(in)))
	in.Close()
	for _, name := range []string{"below", "deep/more", "deep"} { // as another run with the same bind may do
		require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, "was-"+filepath.Base(name))))
		require.NoError(t, os.Symlink(host, filepath.Join(dir, name)))
	}
	require.NoError(t, hold.Close())
	_, err = p.Wait()
	require.NoError(t, err)
	runs.Output(t, runs.Shell("exit 0")) // by now the other run has returned what it had
	require.Equal(t, before, snapshot(t, host))
	to, err := os.Readlink(filepath.Join(dir, "below"))
	require.NoError(t, err)
	require.Equal(t, host, to)
}
