//go:build linux

package attack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("favoured", favouredHelper) }

// A service's runs do not inherit what its other children do: a raised priority, protection when
// memory is short, ignored signals. They do inherit a lowered priority.
func TestAttackInherited(t *testing.T) {
	host, run := favoured(t, -7)
	if testkit.WholeMachine() && testkit.Effective(unix.CAP_SYS_NICE) {
		require.Equal(t, "-7", host["nice"], "the control")
		require.Equal(t, "1", host["class of I/O"], "the control")
	}
	if testkit.WholeMachine() && testkit.Effective(unix.CAP_SYS_RESOURCE) {
		require.Equal(t, "-1000", host["protection"], "the control")
		require.Equal(t, "50 50", host["real time"], "the control")
	}
	require.Contains(t, host["ignored"], "0003", "the control: SIGHUP and SIGINT")
	for name, value := range host {
		if strings.HasPrefix(value, "-") {
			host[name] = "0"
		}
	}
	require.Equal(t, map[string]string{"nice": host["nice"], "class of I/O": "0", "protection": host["protection"], "ignored": "0000000000000000", "real time": "0 0"}, run)
	_, run = favoured(t, 15)
	require.Equal(t, "15", run["nice"])
}

// Nor do gVisor's processes, which are a run's kernel.
func TestAttackGuestInherited(t *testing.T) {
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "runsc")
	host, run := favoured(t, -7, "guest")
	require.Equal(t, "-7", host["nice"], "the control")
	require.Equal(t, "1", host["class of I/O"], "the control")
	if testkit.Effective(unix.CAP_SYS_RESOURCE) {
		require.Equal(t, "-1000", host["protection"], "the control")
	}
	require.Equal(t, map[string]string{"nice": "0", "class of I/O": "0", "protection": "0"}, run)
	_, run = favoured(t, 15, "guest")
	require.Equal(t, "15", run["nice"])
}

// favoured starts a host process that has all of these, as far as this process may give them to it,
// and returns what it and its run have.
func favoured(t *testing.T, nice int, args ...string) (host, run map[string]string) {
	t.Helper()
	started := make(chan error)
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(testkit.Deadline(t), "/bin/sh", "-c", `trap '' HUP INT TSTP; (echo -1000 >/proc/self/oom_score_adj) 2>/dev/null && echo -1000 >/proc/self/oom_score_adj; exec "$0" "$@"`)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), testkit.HelperEnv), &out, &stderr
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd.Args = slices.Concat(cmd.Args, []string{exe}, testkit.HelperArgs("favoured", args...))
	go func() { // on a thread that ends with it
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
		_ = rawCall(unix.SYS_IOPRIO_SET, 1, 0, 1<<13)
		started <- cmd.Start()
	}()
	require.NoError(t, <-started)
	require.NoError(t, cmd.Wait(), "%s", &stderr)
	hosts, runs, found := strings.Cut(out.String(), "run:\n")
	require.True(t, found, "%s", &out)
	return fields(hosts), fields(runs)
}

func fields(lines string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(lines) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		m[name] = value
	}
	return m
}

// favouredHelper prints what it was given, and what its run has inherited of that.
func favouredHelper(args []string) error {
	if slices.Equal(args, []string{"guest"}) {
		return favouredGuest()
	}
	if len(args) == 0 {
		_ = unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: 50, Max: 50})
		defer func() { _ = sandbox.Shutdown(context.Background()) }()
		defer func() {
			out, err := runs.Helper("favoured", "inside").Output(context.Background())
			fmt.Printf("run:\n%s", out)
			if err != nil {
				fmt.Println("error:", err)
			}
		}()
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return err
	}
	io, _, _ := unix.RawSyscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTPRIO, &l); err != nil {
		return err
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	fmt.Printf("nice: %d\nclass of I/O: %d\nreal time: %d %d\nprotection: %signored: %s\n", attr.Nice, io>>13, l.Cur, l.Max, score, statusOfSelf("SigIgn"))
	return err
}

// favouredGuest prints what it was given, and the most that a process of gVisor has of that.
func favouredGuest() error {
	ctx := context.Background()
	cell, err := sandbox.NewCell(sandbox.CellRuntime("runsc"))
	if err != nil {
		return err
	}
	defer cell.Close()
	p, err := sandbox.New(sandbox.WithCommand("sleep", "1000"), sandbox.WithCell(cell)).Start(ctx)
	if err != nil {
		return err
	}
	fmt.Print(favours([]int{0}))
	of := []int{p.PID()}
	for i := 0; i < len(of); i++ {
		of = append(of, testkit.ChildrenOf(of[i])...)
	}
	if len(of) < 3 {
		return fmt.Errorf("gVisor's processes: %v", of)
	}
	fmt.Print("run:\n", favours(of))
	return nil
}

// favours returns what favours processes, the one of them that has most, 0 being this one.
func favours(pids []int) string {
	nice, class, protection := int32(20), uintptr(0), 1000
	for _, pid := range pids {
		dir := "/proc/self/"
		if pid != 0 {
			dir = fmt.Sprintf("/proc/%d/", pid)
		}
		if attr, err := unix.SchedGetAttr(pid, 0); err == nil {
			nice = min(nice, attr.Nice)
		}
		if io, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, 1, uintptr(pid), 0); errno == 0 && io>>13 == 1 {
			class = 1
		}
		var score int
		if b, err := os.ReadFile(dir + "oom_score_adj"); err == nil {
			_, _ = fmt.Sscan(string(b), &score)
			protection = min(protection, score)
		}
	}
	return fmt.Sprintf("nice: %d\nclass of I/O: %d\nprotection: %d\n", nice, class, protection)
}
