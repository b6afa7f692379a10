//go:build cgo

package cell

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/wall"
)

// TestWallsMakeTheSame compares what the kernel says about PID 1 of the cells that libcontainer and
// the built-in wall make.
func TestWallsMakeTheSame(t *testing.T) {
	for name, config := range map[string]Config{"default": {}, "host network": {HostNetwork: true}, "host ids": {HostIDs: true}} {
		t.Run(name, func(t *testing.T) {
			if config.HostIDs {
				testkit.Need(t, "root")
			}
			want, got := factsOf(t, config, wall.Libcontainer()), factsOf(t, config, wall.Builtin())
			// The built-in one has a root that is no directory of the host, and device
			// nodes whose attributes nobody can change, and PID 1 has none of this
			// process's groups.
			require.Equal(t, "ro,nosuid,nodev tmpfs", got["mount /"])
			for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
				require.Contains(t, got["mount /dev/"+d], "ro,nosuid,noexec")
			}
			if asRoot() {
				require.Empty(t, got["Groups"])
			}
			for _, facts := range []map[string]string{want, got} {
				maps.DeleteFunc(facts, func(fact, _ string) bool {
					return fact == "Groups" || fact == "mount /" || strings.HasPrefix(fact, "mount /dev/")
				})
			}
			require.Equal(t, want, got)
		})
	}
}

// factsOf boots a cell and returns what there is to know of its PID 1 from outside.
func factsOf(t *testing.T, config Config, w wall.Wall) map[string]string {
	c, err := bootNew(config, w)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close(context.Background())) }()
	proc := initOf(t)
	read := func(name string) string {
		b, err := os.ReadFile(proc + name)
		require.NoError(t, err)
		return strings.ReplaceAll(string(b), c.state.id, "ID")
	}
	testkit.Eventually(t, "it has made its child", func() bool {
		status := read("status")
		return strings.Contains(status, "\nSigBlk:\t0000000000000000\n") && strings.Contains(status, "\nState:\tS")
	})
	facts := map[string]string{}
	for _, file := range []string{"uid_map", "gid_map", "setgroups", "cgroup", "limits", "oom_score_adj", "personality", "timerslack_ns", "cmdline"} {
		if _, err := os.Stat(proc + file); err == nil {
			facts[file] = read(file)
		}
	}
	for line := range strings.Lines(read("status")) {
		name, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Groups", "Umask", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Cpus_allowed"}, name) {
			facts[name] = strings.TrimSpace(value)
		}
	}
	for line := range strings.Lines(read("mountinfo")) {
		f := strings.Fields(line)
		kind := f[slices.Index(f, "-")+1]
		require.Equal(t, 6, slices.Index(f, "-"), "its mounts are private: %s", line)
		facts["mount "+f[4]] = strings.TrimSuffix(f[5], ",relatime") + " " + kind
	}
	for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		require.NoError(t, err)
		inside, err := os.Readlink(proc + "ns/" + ns)
		if os.IsPermission(err) {
			continue // the fork server is not dumpable
		}
		require.NoError(t, err)
		facts["namespace "+ns] = fmt.Sprint("the host's: ", inside == own)
	}
	fds, _ := filepath.Glob(proc + "fd/*")
	for _, fd := range fds {
		target, _ := os.Readlink(fd)
		kind, _, _ := strings.Cut(target, ":[") // of sockets, pipes and namespaces
		facts["descriptor "+filepath.Base(fd)] = strings.ReplaceAll(kind, c.state.id, "ID")
	}
	stat := read("stat")
	f := strings.Fields(stat[strings.LastIndex(stat, ")"):])
	facts["session"] = fmt.Sprint("its own: ", f[4] == filepath.Base(proc))
	return facts
}

// initOf returns the directory in /proc of this process's fork server.
func initOf(t *testing.T) string {
	all, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	i := slices.IndexFunc(all, func(proc string) bool {
		args, _ := os.ReadFile(proc + "/cmdline")
		status, _ := os.ReadFile(proc + "/status")
		return strings.Contains(string(args), forkserver.Name) && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid()))
	})
	require.GreaterOrEqual(t, i, 0)
	return all[i] + "/"
}

// BenchmarkBoot boots cells of each wall in turn, beside a heap of the given size.
func BenchmarkBoot(b *testing.B) {
	for _, heap := range []int{0, 512 << 20} {
		held := make([]byte, heap)
		for i := 0; i < heap; i += 4096 {
			held[i] = 1
		}
		b.Run(fmt.Sprintf("heap=%dMiB", heap>>20), func(b *testing.B) {
			took := map[string]time.Duration{}
			for b.Loop() {
				for _, w := range []wall.Wall{wall.Libcontainer(), wall.Builtin()} {
					begin := time.Now()
					c, err := bootNew(Config{}, w)
					took[w.Name()] += time.Since(begin)
					require.NoError(b, err)
					require.NoError(b, c.Close(context.Background()))
				}
			}
			for name, d := range took {
				b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms")
			}
		})
		runtime.KeepAlive(held)
	}
}
