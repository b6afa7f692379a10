//go:build linux

package attack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/pool"
)

func init() { testkit.AddHelper("trail", trailHelper) }

// A trace is something that a run can leave for another, which must not learn about it. The list
// has what sandboxes of programming contests were found to leak, and what the kernel counts.
type trace struct {
	name  string
	leave func() error
	find  func() error // returns nil if the trace is there
	own   bool         // the run that left it finds it too, which proves that it can be found
}

var traces = []trace{
	fileTrace("/tmp"), fileTrace("/dev/shm"), fileTrace("/home/sandbox"),
	{"shared memory", func() error { return shmGet(unix.IPC_CREAT | 0o666) }, func() error { return shmGet(0) }, true},
	{"semaphores", func() error { return rawCall(unix.SYS_SEMGET, traceKey, 1, unix.IPC_CREAT|0o666) }, func() error { return rawCall(unix.SYS_SEMGET, traceKey, 1, 0) }, true},
	{"messages", func() error { return rawCall(unix.SYS_MSGGET, traceKey, unix.IPC_CREAT|0o666) }, func() error { return rawCall(unix.SYS_MSGGET, traceKey, 0) }, true},
	{"a message queue", smallQueue,
		func() error { return rawCall(unix.SYS_MQ_OPEN, pathOf("trace"), unix.O_RDWR, 0, 0) }, true},
	listener("unix", "@trace"), listener("unix", "/tmp/trace.socket"), listener("tcp", "127.0.0.1:4711"), listener("tcp", "[::1]:4711"),
	{"an address in use", func() error { return holdPort() }, func() error { return inUse(holdPort()) }, true},
	{"the list of sockets", func() error { return listen("unix", "@trace-listed") }, func() error { return contains("/proc/net/unix", "@trace-listed") }, true},
	{"a process", forkSleeper, otherProcess, true},
	{"a lock", lockTrace, func() error { return inUse(lockTrace()) }, true},
	{"an open file's lock in /proc/locks", lockRange, func() error { return contains("/proc/locks", fmt.Sprint(traceKey)) }, false},
	{"a terminal", func() error { _, err := terminalNumber(); return err }, func() error { return above(0)(terminalNumber()) }, true},
	{"packets", sendPacket, func() error { return strangePackets() }, true},
	{"process ids", func() error { return times(100, forkSleeper) }, func() error { return above(100)(lastPID()) }, true},
	{"ids of shared memory", func() error { _, err := unix.SysvShmGet(unix.IPC_PRIVATE, 1, 0o600); return err },
		func() error { return above(1)(unix.SysvShmGet(unix.IPC_PRIVATE, 1, 0o600)) }, true}, // the other one above has an id too
	{"inode numbers", func() error { return times(100, func() error { _, err := newInode(); return err }) }, func() error { return above(100)(newInode()) }, true},
	{"a timer", func() error { return setTimer() }, func() error { return timerIsSet() }, true},
	{"memory", func() error { return fillMemory() }, func() error { return filledMemory() }, false},
	{"memory of files", func() error { return fillFile() }, func() error { return filledFile() }, false},
}

// keyTraces need a run without a filter, which refuses all calls for keys.
var keyTraces = []trace{keyTrace("session", -3), keyTrace("user", -4), keyTrace("user session", -5)}

const traceKey = 0x5a4d0c1d

func init() {
	for kind, list := range map[string][]trace{"traces": traces, "keys": keyTraces} {
		var all []attack
		for _, tr := range list {
			all = append(all, attack{name: tr.name, try: func(args []string) error {
				if len(args) > 0 && !tr.own {
					return errNothing
				} else if len(args) > 0 {
					if err := tr.leave(); err != nil {
						return fmt.Errorf("leaving it: %w", err)
					}
				}
				return tr.find()
			}})
		}
		addAttacks(kind, all)
	}
}

// trailHelper leaves all traces of a kind. Then it waits for the end of its input.
func trailHelper(args []string) error {
	var errs error
	for _, tr := range map[string][]trace{"traces": traces, "keys": keyTraces}[args[0]] {
		if err := tr.leave(); err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", tr.name, err))
		}
	}
	if errs == nil {
		fmt.Println("left")
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return errors.Join(errs, err)
}

// A trace that a run leaves is found by the run itself, but by no run beside or after it, however
// they are started.
func TestAttackTraces(t *testing.T) {
	t.Parallel()
	base := sandbox.New()
	testTraces(t, "traces", base)
	t.Run("prepared", func(t *testing.T) {
		s := runs.Prepared(t, 3, runs.HelperOptions()...)
		requireTraceless(t, "traces", runs.HelperOf(s, "trail", "traces"), runs.HelperOf(s, "attack", "traces"))
	})
	t.Run("in a pool", func(t *testing.T) {
		jobs := pool.New(base.With(runs.HelperOptions()...), 1)
		defer jobs.Close(testkit.Deadline(t))
		_, err := jobs.Run(testkit.Deadline(t), sandbox.WithCommand("/helper", "trail", "traces"))
		require.NoError(t, err)
		var out bytes.Buffer
		_, err = jobs.Run(testkit.Deadline(t), sandbox.WithCommand("/helper", "attack", "traces"), sandbox.WithStdout(&out))
		require.NoError(t, err)
		requireNoTrace(t, "traces", out.String())
	})
	t.Run("without seccomp", func(t *testing.T) { testTraces(t, "keys", base.With(sandbox.WithoutSeccomp())) })
	if testkit.AsRoot() && testkit.Effective(unix.CAP_NET_ADMIN) {
		t.Run("without a user namespace", func(t *testing.T) { testTraces(t, "traces", runs.HostUser(base)) })
	}
}

func testTraces(t *testing.T, kind string, s *sandbox.Sandbox) {
	t.Helper()
	s = s.With(runs.HelperOptions()...)
	own := tried(t, kind, runs.Output(t, runs.HelperOf(s, "attack", kind, "its own")))
	for _, tr := range slices.Concat(traces, keyTraces) {
		if outcome, ok := own[tr.name]; ok && tr.own {
			require.True(t, outcome.through, "the control: %s: %s", tr.name, outcome.by)
		}
	}
	requireTraceless(t, kind, runs.HelperOf(s, "trail", kind), runs.HelperOf(s, "attack", kind))
}

// requireTraceless has one run leave traces, and one beside it and one after it look for them.
func requireTraceless(t *testing.T, kind string, leaves, looks *sandbox.Sandbox) {
	t.Helper()
	line, err := beside(t, leaves).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "left\n", line)
	if kind == "traces" && testkit.WholeMachine() {
		require.NoError(t, contains("/proc/locks", fmt.Sprint(traceKey)), "the control: the host sees the neighbour's lock")
	}
	requireNoTrace(t, kind, runs.Output(t, looks))
	require.Equal(t, "left", runs.Output(t, leaves))
	requireNoTrace(t, kind, runs.Output(t, looks))
}

func requireNoTrace(t *testing.T, kind, out string) {
	t.Helper()
	for name, outcome := range tried(t, kind, out) {
		require.False(t, outcome.through, "%s is found", name)
	}
}

// held keeps open what should be found.
var held []io.Closer

func fileTrace(dir string) trace {
	name := dir + "/trace"
	return trace{"a file in " + dir, func() error { return os.WriteFile(name, []byte("trace"), 0o666) }, func() error { return contains(name, "trace") }, true}
}

func shmGet(flag int) error {
	_, err := unix.SysvShmGet(traceKey, 4096, flag)
	return err
}

func listener(network, address string) trace {
	return trace{"a server at " + address, func() error { return listen(network, address) }, func() error {
		c, err := net.DialTimeout(network, address, time.Minute)
		if err == nil {
			c.Close()
		}
		return err
	}, true}
}

func listen(network, address string) error {
	l, err := net.Listen(network, address)
	if err == nil {
		held = append(held, l)
	}
	return err
}

func holdPort() error {
	c, err := net.ListenPacket("udp", "127.0.0.1:4712")
	if err == nil {
		held = append(held, c)
	}
	return err
}

// inUse turns the error of the second user into success.
func inUse(err error) error {
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	return errors.Join(err, errNothing)
}

// smallQueue makes a queue of which a user may have several, in case runs have the same user.
func smallQueue() error {
	attr := [8]int64{1: 1, 2: 16} // mq_maxmsg, mq_msgsize: mq_getattr(3)
	return rawCall(unix.SYS_MQ_OPEN, pathOf("trace"), unix.O_CREAT|unix.O_RDWR, 0o666, uintptr(unsafe.Pointer(&attr)))
}

func lockTrace() error {
	f, err := os.OpenFile("/tmp/trace.lock", os.O_CREATE|os.O_RDWR, 0o666)
	if err == nil {
		held = append(held, f)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	return err
}

// lockRange locks a byte whose position others could read. The kernel hides locks of other
// namespaces, but not those of open files.
func lockRange() error {
	f, err := os.OpenFile("/tmp/trace.range", os.O_CREATE|os.O_RDWR, 0o666)
	if err == nil {
		held = append(held, f)
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: traceKey, Len: 1})
	}
	return err
}

func terminalNumber() (int, error) {
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	held = append(held, f)
	return unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN)
}

// above finds a number that is too large for a process that is alone and first.
func above(most int) func(int, error) error {
	return func(n int, err error) error {
		if err == nil && n <= most {
			return fmt.Errorf("it is %d", n)
		}
		return err
	}
}

func times(n int, f func() error) error {
	for range n {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func sendPacket() error {
	c, err := net.Dial("udp", "127.0.0.1:4713")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("trace"))
	return err
}

// strangePackets finds that lo has been used, except by the search for servers.
func strangePackets() error {
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return err
	}
	_, rest, _ := bytes.Cut(b, []byte("\nUdp: "))
	_, rest, _ = bytes.Cut(rest, []byte("\nUdp: "))
	received, sent := 0, 0
	var noPorts, errs int
	_, err = fmt.Sscan(string(rest), &received, &noPorts, &errs, &sent)
	return errors.Join(err, above(0)(sent, nil))
}

func lastPID() (n int, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/ns_last_pid")
	if errors.Is(err, os.ErrNotExist) { // a kernel without CONFIG_CHECKPOINT_RESTORE
		cmd, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err != nil {
			return 0, err
		}
		_, err = cmd.Wait()
		return cmd.Pid, err
	}
	if err == nil {
		_, err = fmt.Sscan(string(b), &n)
	}
	return n, err
}

func newInode() (int, error) {
	f, err := os.CreateTemp("/tmp", "")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	return int(st.Ino), err
}

type itimer struct{ interval, value unix.Timeval }

func setTimer() error {
	return rawCall(unix.SYS_SETITIMER, unix.ITIMER_REAL, uintptr(unsafe.Pointer(&itimer{value: unix.Timeval{Sec: 1 << 20}})), 0)
}

func timerIsSet() error {
	var now itimer
	if err := rawCall(unix.SYS_GETITIMER, unix.ITIMER_REAL, uintptr(unsafe.Pointer(&now))); err != nil {
		return err
	}
	return above(0)(int(now.value.Sec), nil)
}

const traceSize = 16 << 20

func fillMemory() error {
	mem, err := unix.Mmap(-1, 0, traceSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	for i := range mem {
		mem[i] = 0x5a
	}
	return err
}

func filledMemory() error {
	mem, err := unix.Mmap(-1, 0, 2*traceSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	return nonZero(mem)
}

func nonZero(mem []byte) error {
	if bytes.Count(mem, []byte{0}) == len(mem) {
		return errNothing
	}
	return nil
}

func fillFile() error {
	return os.WriteFile("/dev/shm/trace.filled", bytes.Repeat([]byte{0x5a}, traceSize), 0o600)
}

// filledFile makes a file's pages appear without writing to them.
func filledFile() error {
	f, err := os.Create("/dev/shm/trace.empty")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, traceSize); err != nil {
		return err
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	return nonZero(b)
}

func keyTrace(name string, ring int) trace {
	key, kind := "trace in "+name, pathOf("user")
	return trace{name + " keyring",
		func() error {
			payload := []byte("trace")
			return rawCall(unix.SYS_ADD_KEY, kind, pathOf(key), uintptr(unsafe.Pointer(&payload[0])), 5, uintptr(ring))
		},
		func() error {
			_, err := unix.KeyctlSearch(ring, "user", key, 0)
			return err
		}, true}
}

// attributesHelper prints everything about a process that exec passes on, or that programs look at,
// and that does not depend on the machine.
func attributesHelper([]string) error {
	runtime.LockOSThread() // thread-self is the one that opened the file
	status, err := os.ReadFile("/proc/thread-self/status")
	// SIGURG is how Go's scheduler interrupts its own threads.
	for line := range strings.Lines(strings.Replace(string(status), "SigPnd:\t0000000000400000", "SigPnd:\t0000000000000000", 1)) {
		name, _, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(name, "Vm") && !strings.HasPrefix(name, "Rss") && !strings.Contains(name, "ctxt") && name != "SigQ" && name != "Threads" && !slices.Contains([]string{"Pid", "NSpid"}, name) {
			fmt.Print(line)
		}
	}
	for _, name := range []string{"limits", "oom_score_adj", "coredump_filter", "personality", "cgroup", "timens_offsets", "timers", "loginuid", "setgroups", "environ", "cmdline"} {
		b, err := os.ReadFile("/proc/self/" + name)
		fmt.Printf("%s: %q %v\n", name, b, err)
	}
	stat, err2 := os.ReadFile("/proc/self/stat")
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	fmt.Println("parent, group, session, terminal, foreground:", f[1:6], "priority, nice:", f[15:17], "policy:", f[38:39])
	fds, _ := filepath.Glob("/proc/self/fd/?")
	fmt.Println(fds, strings.Join(os.Environ(), " "))
	var u unix.Utsname
	err3 := unix.Uname(&u)
	fmt.Printf("%s %s\n", unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Domainname[:]))
	wd, err4 := os.Getwd()
	fmt.Println(wd)
	mounts, err5 := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		fmt.Println(strings.Fields(line)[1:3])
	}
	return errors.Join(err, err2, err3, err4, err5)
}

func init() { testkit.AddHelper("attributes", attributesHelper) }

// Nothing in a process shows how it was started and what ran before it.
func TestAttackAttributes(t *testing.T) {
	t.Parallel()
	s := sandbox.New(runs.HelperOptions()...)
	want := runs.Output(t, runs.HelperOf(s, "attributes"))
	require.Contains(t, want, "terminal, foreground: [1 2 2 0 -1]")
	require.Equal(t, "left", runs.Output(t, runs.HelperOf(s, "trail", "traces")))
	require.Equal(t, want, runs.Output(t, runs.HelperOf(s, "attributes")), "after another")
	require.Equal(t, want, runs.Output(t, runs.HelperOf(runs.Prepared(t, 1, runs.HelperOptions()...), "attributes")), "prepared")
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, want, runs.Output(t, runs.HelperOf(s.With(sandbox.WithCell(c)), "attributes")), "in another cell")
}

// The usage of a run is its own, whatever ran before it in the same sandbox:
// https://github.com/ioi/isolate/issues/158.
func TestAttackUsage(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "cgroup memory")
	testkit.Need(t, "CPU accounting")
	s := runs.Prepared(t, 2, append(runs.HelperOptions(), sandbox.WithMemory(128*sandbox.MiB), sandbox.WithPIDs(100))...)
	for range 2 {
		first, err := runs.HelperOf(s, "alloc", "60").Run(testkit.Deadline(t))
		require.NoError(t, err)
		spun, err := runs.HelperOf(s, "spin", "400ms").Run(testkit.Deadline(t))
		require.NoError(t, err)
		next, err := s.With(sandbox.WithCommand("true")).Run(testkit.Deadline(t))
		require.NoError(t, err)
		if !slices.Contains(next.Usage.Uncounted, "MemoryPeak") {
			require.Greater(t, first.Usage.MemoryPeak, uint64(60*sandbox.MiB), "the control")
			require.Less(t, next.Usage.MemoryPeak, uint64(30*sandbox.MiB))
		}
		require.GreaterOrEqual(t, spun.Usage.UserCPU+spun.Usage.SystemCPU, 350*time.Millisecond, "the control, whose clock is not the cgroup's")
		require.Less(t, next.Usage.UserCPU+next.Usage.SystemCPU, 350*time.Millisecond)
	}
}
