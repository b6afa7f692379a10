//go:build linux

package run_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/testkit"
)

// Every call of the two programs fails once. Each time the error names the call, and nothing of the
// run stays.
func TestRootlessFaults(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o644))
	extra, err := os.Open(file)
	require.NoError(t, err)
	defer extra.Close()
	binds := sandbox.WithReadOnlyBind(file, "/etc/file")
	type faulty struct {
		name string
		opts []sandbox.Option
		cell []sandbox.CellOption
	}
	tests := []faulty{
		{name: "default"},
		{name: "much", opts: []sandbox.Option{binds, sandbox.WithTmpfs("/tmp/deep", sandbox.MiB), sandbox.WithTmpfs("/tmp", sandbox.MiB), sandbox.WithFile("/tmp/a/b", []byte("x"), 0o600),
			sandbox.WithFile("/etc/hosts", []byte("x"), 0o644), sandbox.WithUser(7, 8), sandbox.WithHostname("x"), sandbox.WithExtraFiles(extra), sandbox.WithRlimit("nofile", 64, 64), sandbox.WithDir("/tmp"), sandbox.WithSetID()}},
	}
	if engine.Machine().AtLeast(5, 11) {
		tests = append(tests, faulty{name: "writable root", opts: []sandbox.Option{binds, sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFile("/etc/app.conf", []byte("x"), 0o644)}})
	}
	if hasHostIDs() {
		tests = append(tests, faulty{name: "no user namespace", opts: []sandbox.Option{sandbox.WithoutUserNamespace(), binds}, cell: []sandbox.CellOption{sandbox.CellWithoutUserNamespace()}})
	}
	if root := emptyDirRoot(t); root != "" && engine.Machine().AtLeast(5, 11) {
		tests = append(tests, faulty{name: "directory", opts: []sandbox.Option{sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithTmpfs("/deep/down", sandbox.MiB), sandbox.WithFile("/etc/app.conf", []byte("x"), 0o644)}})
	}
	if os.Geteuid() == 0 {
		tests = append(tests, faulty{name: "the host's network", opts: []sandbox.Option{sandbox.WithNetwork(sandbox.NetworkHost)}, cell: []sandbox.CellOption{sandbox.CellNetwork(sandbox.NetworkHost)}})
	}
	if limits := []sandbox.Option{sandbox.WithMemory(64 * sandbox.MiB), sandbox.WithPIDs(9), sandbox.WithCPUs(1)}; enforces(limits) {
		tests = append(tests, faulty{name: "limits", opts: limits})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := sandbox.NewCell(test.cell...)
			require.NoError(t, err)
			// Close waits until all ids that were taken are given back.
			defer func() { require.NoError(t, c.Close()) }()
			base := made(append([]sandbox.Option{sandbox.WithCommand("true"), sandbox.WithCell(c), sandbox.WithNetwork(sandbox.NetworkNew)}, test.opts...)...)
			testFaults(t, base, cellOf(base))
		})
	}
}

// emptyDirRoot returns a root with nothing but a static busybox, or "" if there is none.
func emptyDirRoot(t *testing.T) string {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return ""
	}
	root := t.TempDir()
	b, err := os.ReadFile(busybox)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, os.Mkdir(root+"/bin", 0o755))
	for _, applet := range []string{"true", "sleep"} {
		require.NoError(t, os.WriteFile(root+"/bin/"+applet, b, 0o755))
	}
	return root
}

// enforces reports whether the limits can be set here.
func enforces(limits []sandbox.Option) bool {
	_, err := sandbox.New(sandbox.WithCommand("true")).With(limits...).Run(context.Background())
	return err == nil
}

// hasHostIDs reports whether this process has what WithoutUserNamespace takes.
func hasHostIDs() bool { return enforces([]sandbox.Option{sandbox.WithoutUserNamespace()}) }

func cellOf(s *run.Sandbox) *cell.Cell { return s.Spec.Place.Cell.(*cell.Cell) }

// runOnce runs the command, which exits with status 0.
func runOnce(ctx context.Context, s *run.Sandbox) error {
	r, err := s.Start(ctx)
	if err == nil {
		_, err = r.Wait()
	}
	return err
}

func testFaults(t *testing.T, base *run.Sandbox, c *cell.Cell) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	require.NoError(t, runOnce(ctx, base))
	good, sh, err := base.Plan(c)
	require.NoError(t, err)
	command, err := base.Command()
	require.NoError(t, err)
	descriptors, processes, mounts, tried := openDescriptors(t), descendants(t), mountsOf(t, base), 0
	// inject makes each step-th call of p fail. replace puts the failing one in its place.
	inject := func(step int, p *program.Program, replace func(bad *compile.Plan, p *program.Program) (command *program.Program)) {
		if os.Getenv("VM_GUEST") == "1" {
			step *= 9
		}
		for i := tried % step; i < p.Len(); i += step {
			errno := []unix.Errno{unix.EPERM, unix.ENOMEM, unix.EINVAL}[i%3]
			bad := *good
			command := replace(&bad, p.Failing(i, errno))
			call := p.Call(i)
			// No run gets to a call that says "not found".
			requireFault(t, runOnce(ctx, base.WithPlan(sh, &bad, command)), errno, call, p.MayFail(i) || strings.HasPrefix(call.Text, "not found"))
			tried++
		}
	}
	inject(1, good.Run, func(bad *compile.Plan, p *program.Program) *program.Program { bad.Run = p; return nil })
	inject(1, command, func(_ *compile.Plan, p *program.Program) *program.Program { return p })
	// Another key keeps a run from using a template that was assembled before.
	anew := func(bad *compile.Plan) {
		bad.Key[0]++
		bad.Key[1] = byte(tried)
		bad.Key[2] = byte(tried >> 8)
	}
	inject(1, good.Template, func(bad *compile.Plan, p *program.Program) *program.Program {
		bad.Template = p
		anew(bad)
		return nil
	})
	if good.Copies != nil {
		inject(max(1, good.Copies.Copy.Len()/16), good.Copies.Copy, func(bad *compile.Plan, p *program.Program) *program.Program {
			copies := *bad.Copies
			copies.Copy = p
			bad.Copies = &copies
			anew(bad)
			return nil
		})
	}
	t.Logf("%d faults", tried)
	require.NoError(t, runOnce(ctx, base))
	require.Equal(t, mounts, mountsOf(t, base), "mounts stay")
	require.Eventually(t, func() bool { return openDescriptors(t) <= descriptors }, 10*time.Second, 10*time.Millisecond, "descriptors stay open")
	if c.Limits != nil {
		require.Eventually(t, func() bool {
			runs, _ := filepath.Glob("/sys/fs/cgroup/*" + c.Limits.Path() + "/run-*")
			unified, _ := filepath.Glob("/sys/fs/cgroup" + c.Limits.Path() + "/run-*")
			return len(runs)+len(unified) == 0
		}, 10*time.Second, 10*time.Millisecond, "cgroups stay")
	}
	require.Eventually(t, func() bool { return descendants(t) <= processes }, 10*time.Second, 10*time.Millisecond, "processes stay")
}

// mountsOf returns what is mounted where this process sees it, and in the sandbox's cell:
// templates, and what is left of one that failed.
func mountsOf(t *testing.T, s *run.Sandbox) (list []string) {
	p, err := derive(s, sandbox.WithCommand("sleep", "1000")).Start(t.Context())
	require.NoError(t, err)
	for _, pid := range []int{os.Getpid(), testkit.Parent(t, testkit.Parent(t, p.PID()))} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			list = append(list, strings.Fields(line)[4])
		}
	}
	require.NoError(t, p.Kill())
	_, _ = p.Wait()
	return list
}

func requireFault(t *testing.T, err error, errno unix.Errno, call program.Call, optional bool) {
	t.Helper()
	if err == nil {
		require.True(t, optional, "%s: the run goes on without %s", call.Stage, call.Text)
		return
	}
	var setup *sandbox.SetupError
	require.ErrorAs(t, err, &setup, "%s: %s", call.Stage, call.Text)
	if optional { // then a later call that misses its result may fail
		return
	}
	require.ErrorIs(t, err, errno, "%s: %s", call.Stage, call.Text)
	if call.Purpose != program.Exec { // Exec's stage is named after the command
		require.Equal(t, call.Stage, setup.Stage)
		require.ErrorContains(t, err, call.Text)
	}
}

// openDescriptors returns the number of open descriptors, except for the namespaces that a cell
// keeps for the binds of its next runs.
func openDescriptors(t *testing.T) (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "user:[") {
			n++
		}
	}
	return n
}

// descendants returns the number of processes below this one.
func descendants(t *testing.T) (n int) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	parents := map[int]int{}
	for _, f := range files {
		b, _ := os.ReadFile(f)
		_, rest, _ := strings.Cut(string(b), ") ")
		var pid, parent int
		var state string
		_, _ = fmt.Sscan(filepath.Base(filepath.Dir(f)), &pid)
		if _, err := fmt.Sscan(rest, &state, &parent); err == nil {
			parents[pid] = parent
		}
	}
	for pid := range parents {
		for above := parents[pid]; above > 0; above = parents[above] {
			if above == os.Getpid() {
				n++
				break
			}
		}
	}
	return n
}
