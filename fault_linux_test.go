package sandbox

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

	"github.com/cellkit/sandbox/internal/program"
)

// Every call of the two programs fails once. Each time the error says which, and nothing stays.
func TestRootlessFaults(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o644))
	extra, err := os.Open(file)
	require.NoError(t, err)
	defer extra.Close()
	binds := WithReadOnlyBind(file, "/etc/file")
	type faulty struct {
		name string
		opts []Option
		cell []CellOption
	}
	tests := []faulty{
		{name: "default"},
		{name: "much", opts: []Option{binds, WithTmpfs("/tmp/deep", MiB), WithTmpfs("/tmp", MiB), WithFile("/tmp/a/b", []byte("x"), 0o600),
			WithFile("/etc/hosts", []byte("x"), 0o644), WithUser(7, 8), WithHostname("x"), WithExtraFiles(extra), WithRlimit("nofile", 64, 64), WithDir("/tmp"), WithSetID()}},
	}
	if thisMachine().AtLeast(5, 11) {
		tests = append(tests, faulty{name: "writable root", opts: []Option{binds, WithWritableRoot(MiB), WithFile("/etc/app.conf", []byte("x"), 0o644)}})
	}
	if hasHostIDs() {
		tests = append(tests, faulty{name: "no user namespace", opts: []Option{WithoutUserNamespace(), binds}, cell: []CellOption{CellWithoutUserNamespace()}})
	}
	if root := emptyDirRoot(t); root != "" && thisMachine().AtLeast(5, 11) {
		tests = append(tests, faulty{name: "directory", opts: []Option{WithRootfs(DirRootfs(root)), WithTmpfs("/deep/down", MiB), WithFile("/etc/app.conf", []byte("x"), 0o644)}})
	}
	if os.Geteuid() == 0 {
		tests = append(tests, faulty{name: "the host's network", opts: []Option{WithNetwork(NetworkHost)}, cell: []CellOption{CellNetwork(NetworkHost)}})
	}
	if limits := []Option{WithMemory(64 * MiB), WithPIDs(9), WithCPUs(1)}; enforces(limits) {
		tests = append(tests, faulty{name: "limits", opts: limits})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := NewCell(test.cell...)
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close()) }() // it waits for all ids that were taken
			base := New(append([]Option{WithCommand("true"), WithCell(c)}, test.opts...)...)
			testFaults(t, base, c)
		})
	}
}

// emptyDirRoot is a root with nothing but a static busybox, "" where there is none.
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

// enforces tells whether the limits can be set here.
func enforces(limits []Option) bool {
	_, err := New(WithCommand("true")).With(limits...).Run(context.Background())
	return err == nil
}

// hasHostIDs tells whether this process has what WithoutUserNamespace takes.
func hasHostIDs() bool {
	_, err := New(WithCommand("true"), WithoutUserNamespace()).Run(context.Background())
	return err == nil
}

func testFaults(t *testing.T, base *Sandbox, c *Cell) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	_, err := base.Run(ctx)
	require.NoError(t, err)
	from, err := newRecipe(&base.config, base.plans, c.impl)
	require.NoError(t, err)
	good, sh := from.plan, shapeOf(&base.config, c.impl, from.limits)
	command, err := base.command.program(&base.config)
	require.NoError(t, err)
	descriptors, processes, mounts, tried := openDescriptors(t), descendants(t), mountsOf(t, base), 0
	inject := func(step int, p *program.Program, replace func(s *Sandbox, bad *plan, p *program.Program)) {
		if os.Getenv("VM_GUEST") == "1" {
			step *= 9
		}
		for i := tried % step; i < p.Len(); i += step {
			errno := []unix.Errno{unix.EPERM, unix.ENOMEM, unix.EINVAL}[i%3]
			bad := *good
			s := base.With()
			replace(s, &bad, p.Failing(i, errno))
			s.plans = &plans{all: map[shape]*plan{sh: &bad}, files: base.plans.files, resolv: base.plans.resolv}
			_, err := s.Run(ctx)
			call := p.Call(i)
			requireFault(t, err, errno, call, p.MayFail(i) || strings.HasPrefix(call.Text, "not found")) // which no run gets to
			tried++
		}
	}
	inject(1, good.run, func(_ *Sandbox, bad *plan, p *program.Program) { bad.run = p })
	inject(1, command, func(s *Sandbox, _ *plan, p *program.Program) {
		s.command = &commandCache{made: p}
		s.command.once.Do(func() {})
	})
	anew := func(bad *plan) { // no other's template, and not one that was assembled
		bad.key[0]++
		bad.key[1] = byte(tried)
		bad.key[2] = byte(tried >> 8)
	}
	inject(1, good.template, func(_ *Sandbox, bad *plan, p *program.Program) {
		bad.template = p
		anew(bad)
	})
	if good.copies != nil {
		inject(max(1, good.copies.Len()/16), good.copies, func(_ *Sandbox, bad *plan, p *program.Program) {
			bad.copies = p
			anew(bad)
		})
	}
	t.Logf("%d faults", tried)
	_, err = base.Run(ctx)
	require.NoError(t, err)
	require.Equal(t, mounts, mountsOf(t, base), "mounts stay")
	require.Eventually(t, func() bool { return openDescriptors(t) <= descriptors }, 10*time.Second, 10*time.Millisecond, "descriptors stay open")
	if c.impl.Limits != nil {
		require.Eventually(t, func() bool {
			runs, _ := filepath.Glob("/sys/fs/cgroup/*" + c.impl.Limits.Path() + "/run-*")
			unified, _ := filepath.Glob("/sys/fs/cgroup" + c.impl.Limits.Path() + "/run-*")
			return len(runs)+len(unified) == 0
		}, 10*time.Second, 10*time.Millisecond, "cgroups stay")
	}
	require.Eventually(t, func() bool { return descendants(t) <= processes }, 10*time.Second, 10*time.Millisecond, "processes stay")
}

// mountsOf is what is mounted where this process sees it, and in the sandbox's cell: templates, and what fails before it is one.
func mountsOf(t *testing.T, s *Sandbox) (list []string) {
	p, err := s.With(WithCommand("sleep", "1000")).Start(t.Context())
	require.NoError(t, err)
	above := func(pid int) (parent int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(b), "\nPPid:\t")
		_, err = fmt.Sscan(rest, &parent)
		require.NoError(t, err)
		return parent
	}
	for _, pid := range []int{os.Getpid(), above(above(p.PID()))} {
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
	var setup *SetupError
	require.ErrorAs(t, err, &setup, "%s: %s", call.Stage, call.Text)
	if optional { // then it is what misses it that says so
		return
	}
	require.ErrorIs(t, err, errno, "%s: %s", call.Stage, call.Text)
	if call.Purpose != program.Exec { // that is named after the command
		require.Equal(t, call.Stage, setup.Stage)
		require.ErrorContains(t, err, call.Text)
	}
}

// openDescriptors is their number, but for the namespaces that a cell keeps for its next runs' binds.
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

// descendants is the number of processes below this one.
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
