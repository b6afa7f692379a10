//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// BenchmarkHold measures what a session takes in which no command is, in KiB, of 100 that live at
// once: the proportional memory of all processes below this one (proc_pid_smaps(5), Pss), and what
// the cgroup of the cell is charged with, kernel memory included. Medians of rounds.
func BenchmarkHold(b *testing.B) {
	const n = 100
	s := sandbox.New(sandbox.WithHold())
	start := func() *sandbox.Process {
		p, err := s.Start(b.Context())
		require.NoError(b, err)
		return p
	}
	first := start() // boots the cell
	defer first.Close()
	group := chargedTo(b)
	var pss, charged []int
	for b.Loop() {
		time.Sleep(time.Second) // until nothing of the round before is being freed
		pss0, charged0 := belowPss(b), number(b, group)
		var all []*sandbox.Process
		for range n {
			all = append(all, start())
		}
		pss = append(pss, (belowPss(b)-pss0)/n)
		charged = append(charged, (number(b, group)-charged0)/n/1024)
		for _, p := range all {
			require.NoError(b, p.Close())
		}
	}
	slices.Sort(pss)
	slices.Sort(charged)
	b.ReportMetric(float64(pss[len(pss)/2]), "pss-KiB")
	b.ReportMetric(float64(charged[len(charged)/2]), "charged-KiB")
	b.ReportMetric(0, "ns/op")
}

// below returns all processes that descend from this one.
func below(b *testing.B) (pids []int) {
	parents := map[int]int{}
	list, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(b, err)
	for _, name := range list {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		_, rest, _ := strings.Cut(string(data), ") ")
		parents[pid], _ = strconv.Atoi(strings.Fields(rest)[1])
	}
	for pid := range parents {
		for up := parents[pid]; up != 0; up = parents[up] {
			if up == os.Getpid() {
				pids = append(pids, pid)
				break
			}
		}
	}
	slices.Sort(pids)
	return pids
}

// belowPss returns the proportional memory of the processes below this one, in KiB.
func belowPss(b *testing.B) (sum int) {
	for _, pid := range below(b) {
		sum += field(b, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
	}
	return sum
}

// chargedTo returns the file that has what the memory cgroup of the first process below this one is
// charged with.
func chargedTo(b *testing.B) string {
	testkit.Need(b, "cgroup memory")
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", below(b)[0]))
	require.NoError(b, err)
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == "memory" {
			return "/sys/fs/cgroup/memory" + f[2] + "/memory.usage_in_bytes"
		}
		if f[1] == "" && len(data) == len(line) {
			return "/sys/fs/cgroup" + f[2] + "/memory.current"
		}
	}
	b.Fatal("no memory cgroup")
	return ""
}

func number(b *testing.B, file string) int {
	data, err := os.ReadFile(file)
	require.NoError(b, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	require.NoError(b, err)
	return n
}

// field returns the number after a name in a file of /proc.
func field(b *testing.B, file, name string) int {
	data, err := os.ReadFile(file)
	require.NoError(b, err)
	_, rest, _ := strings.Cut(string(data), name)
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(b, err)
	return n
}
