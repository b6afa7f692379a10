//go:build linux

package sandbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// The benchmarks run one and the same static program that does nothing, as a plain child process,
// in a sandbox with memory, CPU and process limits and the default seccomp filter, and in the same
// root under bubblewrap and runc where those are installed. They need root and a C compiler.
//
// Machines are noisy, so what counts is ratios within one run: BenchmarkCompare takes turns between
// the subjects and reports medians.

// subject is one way to run the program.
type subject struct {
	name string
	run  func() error
}

// benchRoot returns a root directory with nothing but the static program.
func benchRoot(b *testing.B) string {
	b.Helper()
	testkit.Need(b, "root")
	root := b.TempDir()
	require.NoError(b, os.Chmod(root, 0o755))
	require.NoError(b, os.Chmod(filepath.Dir(root), 0o755))
	for _, dir := range []string{"proc", "dev", "tmp", "home/sandbox"} {
		require.NoError(b, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	cc := exec.Command("gcc", "-O2", "-static", "-x", "c", "-o", filepath.Join(root, "true"), "-")
	cc.Stdin = strings.NewReader("int main(void) { return 0; }")
	out, err := cc.CombinedOutput()
	require.NoError(b, err, "gcc: %s", out)
	return root
}

func sandboxSubject(b *testing.B, root string) subject {
	s := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand("/true"),
		sandbox.WithMemory(64*sandbox.MiB), sandbox.WithCPUs(1), sandbox.WithPIDs(32))
	run := func() error {
		_, err := s.Run(context.Background())
		return err
	}
	require.NoError(b, run()) // boots the cell
	return subject{"sandbox", run}
}

func execSubject(root string) subject {
	return subject{"exec", func() error { return exec.Command(filepath.Join(root, "true")).Run() }}
}

func bubblewrapSubject(root string) (subject, bool) {
	path, err := exec.LookPath("bwrap")
	return subject{"bubblewrap", func() error {
		return exec.Command(path, "--unshare-all", "--uid", "1000", "--gid", "1000", "--ro-bind", root, "/",
			"--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home/sandbox", "/true").Run()
	}}, err == nil
}

// runcSubject returns a subject that uses the bundle that "runc spec" makes, with the same limits.
func runcSubject(b *testing.B, root string) (subject, bool) {
	path, err := exec.LookPath("runc")
	if err != nil {
		return subject{}, false
	}
	bundle := b.TempDir()
	spec := exec.Command(path, "spec", "--bundle", bundle)
	out, err := spec.CombinedOutput()
	require.NoError(b, err, "runc spec: %s", out)
	file := filepath.Join(bundle, "config.json")
	raw, err := os.ReadFile(file)
	require.NoError(b, err)
	var conf map[string]any
	require.NoError(b, json.Unmarshal(raw, &conf))
	process := conf["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/true"}
	conf["root"] = map[string]any{"path": root, "readonly": true}
	conf["linux"].(map[string]any)["resources"] = map[string]any{
		"memory": map[string]any{"limit": 64 * sandbox.MiB},
		"cpu":    map[string]any{"quota": 100000, "period": 100000},
		"pids":   map[string]any{"limit": 32},
	}
	raw, err = json.Marshal(conf)
	require.NoError(b, err)
	require.NoError(b, os.WriteFile(file, raw, 0o644))
	var n atomic.Int64
	return subject{"runc", func() error {
		id := fmt.Sprintf("sandbox-bench-%d-%d", os.Getpid(), n.Add(1))
		return exec.Command(path, "run", "--bundle", bundle, id).Run()
	}}, true
}

// subjects returns all subjects that work on this machine. A peer that is installed but does not
// work is left out, with a message.
func subjects(b *testing.B) []subject {
	root := benchRoot(b)
	list := []subject{execSubject(root), sandboxSubject(b, root)}
	if s, ok := bubblewrapSubject(root); ok {
		list = append(list, s)
	}
	if s, ok := runcSubject(b, root); ok {
		list = append(list, s)
	}
	return slices.DeleteFunc(list, func(s subject) bool {
		err := s.run()
		if err != nil {
			b.Logf("%s does not work here: %v", s.name, err)
		}
		return err != nil
	})
}

// BenchmarkCompare takes turns between the subjects. Its figures are medians in milliseconds and,
// as x-NAME, the ratio of the sandbox's median to NAME's.
func BenchmarkCompare(b *testing.B) {
	list := subjects(b)
	times := map[string][]time.Duration{}
	for b.Loop() {
		for _, s := range list {
			start := time.Now()
			require.NoError(b, s.run(), s.name)
			times[s.name] = append(times[s.name], time.Since(start))
		}
	}
	own := median(times["sandbox"])
	for _, s := range list {
		m := median(times[s.name])
		b.ReportMetric(float64(m)/1e6, s.name+"-ms")
		if s.name != "sandbox" {
			b.ReportMetric(float64(own)/float64(m), "x-"+s.name)
		}
	}
	b.ReportMetric(0, "ns/op") // the sum of all subjects means nothing
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkHeap takes turns between a host with a small heap and the same host with 2 GiB: the time
// of a run must not depend on it.
func BenchmarkHeap(b *testing.B) {
	root := benchRoot(b)
	list := []subject{sandboxSubject(b, root), execSubject(root)}
	const rounds = 20
	ratios := map[string][]time.Duration{}
	for b.Loop() {
		for _, size := range []int{10 * sandbox.MiB, 2 * sandbox.GiB} {
			heap := touched(size)
			for _, s := range list {
				for range rounds {
					start := time.Now()
					require.NoError(b, s.run())
					key := fmt.Sprintf("%s-%dMiB", s.name, size/sandbox.MiB)
					ratios[key] = append(ratios[key], time.Since(start))
				}
			}
			runtime.KeepAlive(heap)
		}
	}
	for _, s := range list {
		small, large := median(ratios[s.name+"-10MiB"]), median(ratios[s.name+"-2048MiB"])
		b.ReportMetric(float64(small)/1e6, s.name+"-10MiB-ms")
		b.ReportMetric(float64(large)/float64(small), s.name+"-2GiB-x")
	}
	b.ReportMetric(0, "ns/op")
}

func touched(size int) []byte {
	heap := make([]byte, size)
	for i := 0; i < len(heap); i += os.Getpagesize() {
		heap[i] = 1
	}
	return heap
}

// BenchmarkThroughput measures each subject four at a time, in turns of a hundred runs. Its figures
// are runs per second and their ratios.
func BenchmarkThroughput(b *testing.B) {
	list := subjects(b)
	const atOnce, runs = 4, 100
	rates := map[string][]time.Duration{}
	for b.Loop() {
		for _, s := range list {
			start := time.Now()
			var next atomic.Int64
			var wait sync.WaitGroup
			for range atOnce {
				wait.Go(func() {
					for next.Add(1) <= runs {
						if err := s.run(); err != nil {
							b.Errorf("%s: %v", s.name, err)
						}
					}
				})
			}
			wait.Wait()
			rates[s.name] = append(rates[s.name], time.Since(start)/runs)
		}
	}
	own := median(rates["sandbox"])
	for _, s := range list {
		m := median(rates[s.name])
		b.ReportMetric(float64(time.Second)/float64(m), s.name+"/s")
		if s.name != "sandbox" {
			b.ReportMetric(float64(m)/float64(own), "x-"+s.name)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBoot measures a first run: the boot of a cell and a run in it.
func BenchmarkBoot(b *testing.B) {
	root := benchRoot(b)
	s := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithCommand("/true"))
	for b.Loop() {
		_, err := s.Run(context.Background())
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, sandbox.Shutdown(context.Background()))
		b.StartTimer()
	}
}
