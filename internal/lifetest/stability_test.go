//go:build linux

package lifetest_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// figures are numbers that must not grow with the number of runs.
type figures struct {
	goroutines    int
	descriptors   int // of this process
	cgroups       int // of the cell and below it, in all hierarchies
	mounts        int // in the cell
	children      int // processes in the cell
	serverFiles   int // descriptors of the fork server's serving child; PID 1 only waits
	serverThreads int
	serverRSS     int // KiB
	serverSize    int // KiB
	heap          int // KiB, of this process
}

// TestLongLivedHost makes many runs one after the other.
func TestLongLivedHost(t *testing.T) {
	testkit.Need(t, "root")
	defer shutdown(t)
	before := map[int]bool{}
	for _, p := range descendants(t) {
		before[p.pid] = true
	}
	runs, warmUp := testkit.Scale(2000, 100), testkit.Scale(200, 50)
	base := sandbox.New(sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCPUs(1))
	run := func(i int) {
		s := base.With(sandbox.WithCommand("/bin/sh", "-c", "echo $0; true & exit 0", fmt.Sprint(i)))
		switch i % 50 {
		case 10: // more templates than are kept
			s = s.With(sandbox.WithTmpfs(fmt.Sprintf("/space%d", i), sandbox.MiB))
		case 20:
			s = s.With(sandbox.WithWritableRoot(sandbox.MiB))
		case 30:
			_, err := s.With(sandbox.WithCommand("missing")).Run(t.Context())
			require.ErrorIs(t, err, os.ErrNotExist)
		case 40:
			p, err := s.With(sandbox.WithCommand("sleep", "1000")).Start(t.Context())
			require.NoError(t, err)
			require.NoError(t, p.Pause())
			require.NoError(t, p.Resume())
			require.NoError(t, p.Kill())
			_, err = p.Wait()
			require.Error(t, err)
		}
		require.NoError(t, wrote(s, fmt.Sprintf("%d\n", i)))
	}
	for i := range warmUp {
		run(i)
	}
	server := serverOf(t, before)
	first := settled(t, server)
	start := time.Now()
	for i := range runs {
		run(i)
	}
	took := time.Since(start)
	last := settled(t, server)
	t.Logf("after %d runs:      %+v", warmUp, first)
	t.Logf("after %d more runs: %+v", runs, last)
	t.Logf("%v a run", (took / time.Duration(runs)).Round(time.Microsecond))

	require.LessOrEqual(t, last.goroutines, first.goroutines+2)
	require.LessOrEqual(t, last.descriptors, first.descriptors+2)
	require.LessOrEqual(t, last.cgroups, first.cgroups)
	require.Equal(t, first.children, last.children)
	// Up to 16 templates are kept.
	require.LessOrEqual(t, last.mounts, max(first.mounts, 16*perTemplate(t, server)))
	require.LessOrEqual(t, last.serverFiles, first.serverFiles)
	require.LessOrEqual(t, last.serverThreads, first.serverThreads+2)
	require.LessOrEqual(t, last.serverRSS, first.serverRSS+4096)
	require.LessOrEqual(t, last.heap, first.heap+8192)
}

// serverOf finds the fork server, this process's only new child.
func serverOf(t *testing.T, before map[int]bool) int {
	t.Helper()
	var found []int
	for _, p := range descendants(t) {
		if p.parent == os.Getpid() && !before[p.pid] {
			found = append(found, p.pid)
		}
	}
	require.Len(t, found, 1)
	return found[0]
}

// perTemplate returns the number of mounts of the largest template in the cell, rounded up.
func perTemplate(t *testing.T, server int) int {
	t.Helper()
	count, most := map[string]int{}, 0
	for _, line := range mountLines(t, server) {
		if _, below, ok := strings.Cut(line, " /cell/templates/"); ok {
			name := strings.FieldsFunc(below, func(r rune) bool { return r == '/' || r == ' ' })[0]
			count[name]++
			most = max(most, count[name])
		}
	}
	return most + 1
}

func mountLines(t *testing.T, pid int) []string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// settled measures once the background work of the last runs is done.
func settled(t *testing.T, server int) figures {
	t.Helper()
	var f figures
	for range 50 {
		runtime.GC()
		last := f
		f = measure(t, server)
		f.heap, last.heap = f.heap/64*64, last.heap/64*64
		if f == last {
			break
		}
		time.Sleep(testkit.Scale(20*time.Millisecond, 200*time.Millisecond))
	}
	return f
}

// workerOf finds the child of the fork server that serves the requests, which is its first.
func workerOf(t *testing.T, server int) (worker int) {
	t.Helper()
	for _, p := range descendants(t) {
		if p.parent == server && (worker == 0 || p.pid < worker) {
			worker = p.pid
		}
	}
	require.NotZero(t, worker)
	return worker
}

func measure(t *testing.T, server int) figures {
	t.Helper()
	worker := workerOf(t, server)
	proc := fmt.Sprintf("/proc/%d/", worker)
	f := figures{
		goroutines:  runtime.NumGoroutine(),
		descriptors: descriptors(t),
		mounts:      len(mountLines(t, server)),
		serverFiles: entries(t, proc+"fd"),
	}
	for _, p := range descendants(t) {
		if p.parent == server || p.parent == worker {
			f.children++
		}
	}
	status, err := os.ReadFile(proc + "status")
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "Threads: %d", &f.serverThreads)
		_, _ = fmt.Sscanf(line, "VmRSS: %d", &f.serverRSS)
		_, _ = fmt.Sscanf(line, "VmSize: %d", &f.serverSize)
	}
	own, err := os.ReadFile(proc + "cgroup")
	require.NoError(t, err)
	f.cgroups = cgroupsOf(t, own)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.heap = int(m.HeapAlloc >> 10)
	return f
}

// descriptors counts this process's, those apart by which it keeps network namespaces for further
// runs, files of each and a socket: how many it keeps is bounded, and depends on how long it takes
// to look at one that was used.
func descriptors(t *testing.T) (n int) {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range dir {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		switch {
		case strings.HasSuffix(target, "/net/ipv4/route/flush"):
			n-- // and the namespace's socket
		case err == nil && !strings.HasPrefix(target, "net:[") && !strings.Contains(target, "/net/"):
			n++
		}
	}
	return n
}

// cgroupsOf counts the directories of the cell whose fork server has the given cgroups.
func cgroupsOf(t *testing.T, own []byte) (n int) {
	t.Helper()
	for _, dir := range cellCgroups(t) {
		if !bytes.Contains(own, []byte("/sandbox/"+filepath.Base(dir)+"/")) {
			continue
		}
		n++
		below, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range below {
			if e.IsDir() {
				n++
			}
		}
	}
	return n
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	require.NoError(t, err)
	return len(all)
}
