//go:build linux

package e2e

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// Two runs at the same time share no namespace with each other or the host.
func TestNamespaces(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	sleep := sandbox.New(sandbox.WithCommand("sleep", "1000"))
	pids := []int{os.Getpid(), runs.Start(t, sleep).PID(), runs.Start(t, sleep).PID(), runs.Start(t, sleep.With(sandbox.WithNetwork(sandbox.NetworkHost))).PID()}
	for _, name := range []string{"mnt", "pid", "ipc", "uts", "user", "cgroup", "net"} {
		seen := map[string]int{}
		for _, pid := range pids {
			if name == "net" && pid == pids[3] {
				continue
			}
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
			require.NoError(t, err)
			require.Zero(t, seen[ns], "%d and %d share %s", pid, seen[ns], ns)
			seen[ns] = pid
		}
	}
	host, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pids[3]))
	require.NoError(t, err)
	require.Equal(t, host, ns)
}

// Live runs have host ids that no other run has and that nobody has on the host.
func TestHostIDs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	seen := map[string]bool{}
	for _, user := range []int{1000, 1000, 0, 0, 65533} {
		p := runs.Start(t, sandbox.New(sandbox.WithCommand("sleep", "1000"), sandbox.WithUser(user, user)))
		for _, field := range []string{"Uid:", "Gid:"} {
			ids := status(t, p.PID(), field)
			require.Len(t, ids, 4)
			require.Len(t, slices.Compact(slices.Clone(ids)), 1)
			require.False(t, seen[field+ids[0]], "%s %s twice", field, ids[0])
			seen[field+ids[0]] = true
			id, err := strconv.Atoi(ids[0])
			require.NoError(t, err)
			require.Greater(t, id, 65535)
		}
		require.Empty(t, status(t, p.PID(), "Groups:"))
	}
}

// status is a line of /proc/pid/status.
func status(t *testing.T, pid int, field string) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			return strings.Fields(rest)
		}
	}
	require.Fail(t, "no such line", field)
	return nil
}

func TestNetworkNone(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testkit.Need(t, "python3")
	require.Equal(t, "lo", runs.Output(t, runs.Shell("tail -n +3 /proc/net/dev | sed 's/^ *//; s/:.*//'")))
	talk := `import socket
s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname(), 5); c.send(b"hi"); print(s.accept()[0].recv(2))
try: socket.create_connection(("192.0.2.1", 80), 5)
except OSError as e: print(e.strerror)
`
	got := runs.Output(t, sandbox.New(sandbox.WithCommand("/usr/bin/python3", "-c", talk)))
	require.Equal(t, "b'hi'\nNetwork is unreachable", got)

	l, err := net.Listen("unix", "@sandbox-test-"+testkit.ALongTime())
	require.NoError(t, err)
	defer l.Close()
	connect := sandbox.New(sandbox.WithCommand("/usr/bin/python3", "-c", `import socket, sys
s = socket.socket(socket.AF_UNIX)
try: s.connect("\0" + sys.argv[1]); print("connected")
except OSError as e: print(e.strerror)
`, strings.TrimPrefix(l.Addr().String(), "@")))
	require.Equal(t, "Connection refused", runs.Output(t, connect))
	require.Equal(t, "connected", runs.Output(t, connect.With(sandbox.WithNetwork(sandbox.NetworkHost))))
}

func TestNetworkHost(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	var names []string
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	got := runs.Output(t, runs.Shell("tail -n +3 /proc/net/dev | sed 's/^ *//; s/:.*//'", sandbox.WithNetwork(sandbox.NetworkHost)))
	require.ElementsMatch(t, names, strings.Fields(got))
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err == nil {
		require.Equal(t, strings.TrimSpace(string(resolv)), runs.Output(t, runs.Shell("cat /etc/resolv.conf", sandbox.WithNetwork(sandbox.NetworkHost))))
	}
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	defer c.Close()
	_, err = runs.Shell("", sandbox.WithCell(c), sandbox.WithNetwork(sandbox.NetworkHost)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "CellNetwork")
}

func TestHostname(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	require.Equal(t, "sandbox\n(none)", runs.Output(t, runs.Shell("hostname; cat /proc/sys/kernel/domainname")))
	name := strings.Repeat("a", 64)
	require.Equal(t, name+"\n"+name+"\n127.0.0.1 "+name, runs.Output(t, runs.Shell("hostname; cat /etc/hostname; sed -n 2p /etc/hosts", sandbox.WithHostname(name))))
	own, err := os.Hostname()
	require.NoError(t, err)
	require.NotEqual(t, name, own)
}

func TestUser(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	id := "id -u; id -g; id -G; id -un 2>/dev/null; touch ~/x /tmp/x && echo wrote"
	require.Equal(t, "1000\n1000\n1000\nsandbox\nwrote", runs.Output(t, runs.Shell(id)))
	require.Equal(t, "0\n0\n0\nroot\nwrote", runs.Output(t, runs.Shell(id, sandbox.WithUser(0, 0))))
	require.Equal(t, "65533\n7\n7\nsandbox\nwrote", runs.Output(t, runs.Shell(id, sandbox.WithUser(65533, 7))))
	require.Equal(t, "0000000000000000", runs.Output(t, runs.Shell("grep CapEff /proc/self/status | cut -f2", sandbox.WithUser(0, 0))))
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	caps := runs.Shell("grep ^Cap /proc/self/status | tr -d '\\t'; grep NoNewPrivs /proc/self/status | tr -d '\\t'")
	none, some := "0000000000000000", fmt.Sprintf("%016x", 1<<unix.CAP_NET_BIND_SERVICE|1<<unix.CAP_CHOWN)
	want := "CapInh:M\nCapPrm:M\nCapEff:M\nCapBnd:M\nCapAmb:M\nNoNewPrivs:1"
	require.Equal(t, strings.ReplaceAll(want, "M", none), runs.Output(t, caps))
	kept := sandbox.WithCapabilities("CAP_NET_BIND_SERVICE", "CAP_CHOWN")
	require.Equal(t, strings.ReplaceAll(want, "M", some), runs.Output(t, caps.With(kept)))
	root := strings.NewReplacer("CapInh:M", "CapInh:"+none, "CapAmb:M", "CapAmb:"+none, "M", some).Replace(want)
	require.Equal(t, root, runs.Output(t, caps.With(kept, sandbox.WithUser(0, 0))))
	require.Equal(t, "3:4\nrefused", runs.Output(t, runs.Shell("touch x; chown 3:4 x; stat -c %u:%g x; chown 3 /tmp/../etc/hosts 2>/dev/null || echo refused", kept)))
	require.Equal(t, "refused", runs.Output(t, runs.Shell("touch x; chown 3:4 x 2>/dev/null || echo refused")))
	_, err := caps.With(sandbox.WithCapabilities("CAP_SYS_ADMIN")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithCapabilities: CAP_SYS_ADMIN is not given to runs")
	_, err = runs.Shell("mount -t tmpfs x /tmp").Run(testkit.Deadline(t))
	runs.ExitError(t, err)
}

func TestSeccomp(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testkit.Need(t, "no filter but each run's own")
	call := func(number int, args ...string) *sandbox.Sandbox {
		return runs.Helper("syscall", append([]string{strconv.Itoa(number)}, args...)...)
	}
	off, newUser := sandbox.WithoutSeccomp(), strconv.Itoa(unix.CLONE_NEWUSER)
	require.Equal(t, "EPERM", runs.Output(t, call(unix.SYS_UNSHARE, newUser)))
	require.Equal(t, "EINVAL", runs.Output(t, call(unix.SYS_UNSHARE, newUser).With(off)), "not from a process with several threads")
	require.Equal(t, "EPERM", runs.Output(t, call(unix.SYS_KEYCTL)))
	require.NotEqual(t, "EPERM", runs.Output(t, call(unix.SYS_KEYCTL).With(off)))
	require.Equal(t, "EPERM", runs.Output(t, call(unix.SYS_BPF)))
	require.Equal(t, "OK", runs.Output(t, call(unix.SYS_GETPPID)))
	_, err := sandbox.New(sandbox.WithCommand("unshare", "-U", "true")).Run(testkit.Deadline(t))
	runs.ExitError(t, err)
	_, err = sandbox.New(sandbox.WithCommand("unshare", "-U", "true"), off).Run(testkit.Deadline(t))
	require.NoError(t, err)

	errno := uint(unix.ENOTTY)
	own := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"getppid"}, Action: specs.ActErrno, ErrnoRet: &errno}}}
	require.Equal(t, "ENOTTY", runs.Output(t, call(unix.SYS_GETPPID).With(sandbox.WithSeccomp(own))))
	require.Equal(t, "OK", runs.Output(t, call(unix.SYS_GETPPID).With(sandbox.WithSeccomp(own), sandbox.WithSeccomp(nil))))
	require.Equal(t, "2", runs.Output(t, runs.Shell("grep Seccomp: /proc/self/status | cut -f2")))
	require.Equal(t, "0", runs.Output(t, runs.Shell("grep Seccomp: /proc/self/status | cut -f2", off)))
	wrong := &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_UNHEARD_OF"}
	_, err = runs.Shell("", sandbox.WithSeccomp(wrong)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithSeccomp")
}

// A run has only its own descriptors, whatever this process has open.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	open, err := os.Open("/")
	require.NoError(t, err)
	defer open.Close()
	_, err = unix.FcntlInt(open.Fd(), unix.F_SETFD, 0) // even if not close-on-exec
	require.NoError(t, err)
	require.Equal(t, "0\n1\n2\n3", runs.Output(t, runs.Shell("ls /proc/self/fd")), "3 is ls's own")
}

func TestProc(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	require.Equal(t, "sandbox-init", runs.Output(t, runs.Shell("cat /proc/1/comm")))
	require.Equal(t, "1\n2", runs.Output(t, runs.Shell("cd /proc; exec ls -d [0-9]*")))
	for _, user := range []int{1000, 0} {
		as := sandbox.WithUser(user, user)
		require.Equal(t, "refused", runs.Output(t, runs.Shell("(echo x >/proc/sys/kernel/domainname) 2>/dev/null || echo refused", as)))
		require.Equal(t, "refused", runs.Output(t, runs.Shell("(echo 0 >/proc/self/oom_score_adj) 2>/dev/null || echo refused", as)), "all of /proc is read-only")
		for _, masked := range []string{"kcore", "keys", "timer_list", "interrupts", "sysrq-trigger", "acpi", "scsi"} {
			require.Equal(t, "0", runs.Output(t, runs.Shell("cat /proc/"+masked+" 2>/dev/null | wc -c; exit 0", as)), masked)
		}
		require.Equal(t, "alive", runs.Output(t, runs.Helper("inspect").With(as)), "PID 1")
	}
	require.Equal(t, "0::/", runs.Output(t, runs.Shell("tail -1 /proc/self/cgroup")))
}

func TestDev(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	require.Equal(t, "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero",
		runs.Output(t, runs.Shell("echo $(ls /dev)")))
	require.Equal(t, "8 ok", runs.Output(t, runs.Shell("set -e; head -c 8 /dev/urandom | wc -c | tr '\\n' ' '; echo >/dev/null; "+
		"(echo >/dev/full) 2>/dev/null && exit 1; head -c 1 /dev/zero >/dev/stdout | true; "+
		"test -c /dev/pts/ptmx; touch /dev/shm/x; ! touch /dev/x 2>/dev/null; ! mknod /tmp/n c 1 3 2>/dev/null; echo ok")))
	require.Equal(t, "pts", runs.Output(t, runs.Shell("script -qc 'tty' /dev/null </dev/null | cut -d/ -f3")))
}

// A run can signal nothing outside.
func TestNoSignalsOutside(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	p := runs.Start(t, sandbox.New(sandbox.WithCommand("sleep", "1000")))
	_, err := runs.Shell(fmt.Sprintf("for pid in %d %d; do kill -0 $pid 2>/dev/null && exit 1; done; kill -0 -1 2>/dev/null; exit 0", os.Getpid(), p.PID())).Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.NoError(t, p.Signal(unix.Signal(0)))
}

// A seccomp profile that refuses what a run needs to begin is an error, even if it also refuses to
// report that, or to exit.
func TestSeccompRefusesAll(t *testing.T) {
	t.Parallel()
	base := runs.Shell("exit 0", sandbox.WithTimeout(testkit.Patience/10))
	_, err := base.With(sandbox.WithSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno})).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, fs.ErrPermission)
	require.Equal(t, "exec", runs.SetupError(t, err).Stage)
	_, err = base.With(sandbox.WithSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess})).Run(testkit.Deadline(t))
	require.Equal(t, syscall.SIGSYS, runs.ExitError(t, err).Signal)
}

// WithTimeOffset moves the monotonic and the boot clock of its run only. The time of day can't be
// moved.
func TestRootlessTimeOffset(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "time namespaces")
	var before, after unix.Timespec
	read := func(opts ...sandbox.Option) (clocks [3]float64) {
		t.Helper()
		out := runs.Output(t, runs.Helper("clocks").With(opts...))
		_, err := fmt.Sscan(out, &clocks[0], &clocks[1], &clocks[2])
		require.NoError(t, err, out)
		return clocks
	}
	for _, offset := range []time.Duration{0, time.Hour, 100 * 365 * 24 * time.Hour, 1500 * time.Millisecond, -500 * time.Millisecond} {
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &before))
		wall := time.Now()
		clocks := read(sandbox.WithTimeOffset(offset))
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &after))
		require.GreaterOrEqual(t, clocks[0], seconds(before)+offset.Seconds()-1e-3)
		require.LessOrEqual(t, clocks[0], seconds(after)+offset.Seconds()+1e-3)
		require.GreaterOrEqual(t, clocks[1], clocks[0]-1e-3, "the boot clock also counts sleep")
		require.InDelta(t, float64(wall.UnixNano())/1e9, clocks[2], 60)
		require.NotZero(t, clocks[2])
	}
	prepared := runs.Prepared(t, 1, sandbox.WithTimeOffset(time.Hour))
	require.Greater(t, read(sandbox.WithTimeOffset(time.Hour))[0], seconds(before)+3600-1e-3)
	out := runs.Output(t, prepared.With(sandbox.WithCommand("cat", "/proc/uptime")))
	require.Regexp(t, `^\d+\.\d+ `, out)
	var uptime float64
	_, err := fmt.Sscan(out, &uptime)
	require.NoError(t, err)
	require.Greater(t, uptime, 3600.0)

	_, err = runs.Shell("true", sandbox.WithTimeOffset(-100*365*24*time.Hour)).Run(testkit.Deadline(t))
	runs.SetupError(t, err, "WithTimeOffset", "/proc/uptime")
	// A run's timeout does not depend on what its clocks show.
	_, err = runs.Shell("sleep 1000", sandbox.WithTimeOffset(time.Hour), sandbox.WithTimeout(300*time.Millisecond)).Run(testkit.Deadline(t))
	require.ErrorIs(t, err, sandbox.ErrTimeout)
}

func seconds(t unix.Timespec) float64 { return float64(t.Sec) + float64(t.Nsec)/1e9 }
