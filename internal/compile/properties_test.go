//go:build linux

package compile_test

import (
	"fmt"
	"math/rand/v2"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// loader is a machine into which the tests load programs. Its memory is never given back, so there
// is only one.
var loader = sync.OnceValues(program.NewMachine)

func requireLoads(t testing.TB, p *program.Program) {
	t.Helper()
	m, err := loader()
	require.NoError(t, err)
	require.NoError(t, m.Load(p.Image(), make([]int, p.Files())))
}

// calls returns the text of each part's calls, as Explain gives them.
func calls(p *program.Program) map[string][]string {
	parts, part := map[string][]string{}, ""
	for line := range strings.Lines(p.Explain()) {
		line = strings.TrimSuffix(line, "\n")
		if call, ok := strings.CutPrefix(line, "  "); ok && !strings.HasPrefix(call, "#") {
			parts[part] = append(parts[part], call)
		} else if name, ok := strings.CutSuffix(line, ":"); ok {
			part = name
		}
	}
	return parts
}

// checkPlan requires what must hold for the programs, the command's among them, whatever the
// options are.
func checkPlan(t testing.TB, c *spec.Spec, p *compile.Plan) {
	t.Helper()
	requireLoads(t, p.Run)
	files := 2 + len(p.Files) // socket and the copy of the template
	if !c.Namespaces.HostIDs {
		files++ // gate
	}
	requireLoads(t, p.Template)
	require.Equal(t, 1+len(p.Trees), p.Template.Files())
	checkSlots(t, p.Template.Files(), calls(p.Template)["setup"])
	require.NotContains(t, p.Template.Explain(), "pivot_root")
	if c.Root.Writable != 0 {
		require.Empty(t, p.Trees)
	}
	require.Equal(t, files, p.Run.Files())

	parts := calls(p.Run)
	passes := slices.DeleteFunc(slices.Clone(parts["command"]), func(call string) bool { return !strings.HasPrefix(call, "pass(") })
	require.Len(t, passes, len(c.Root.Layout(spec.Found{}).Filled))
	checkSlots(t, files, slices.Concat(parts["setup"], parts["command"]))
	checkAfterPivot(t, parts)
	last := len(parts["command"]) - 1
	require.Equal(t, "receive()", parts["command"][last])
	if !c.Security.NoSeccomp && c.Security.Seccomp == nil {
		requireFilterLast(t, c, parts["command"][:last])
	}
	if c.Namespaces.HostIDs {
		parts["init"] = checkHostIDs(t, c, parts)
	}
	checkPrivileges(t, c, parts["command"], parts["setup"])
	checkCommand(t, c)
	for _, call := range parts["init"] {
		for _, slot := range slotUses(call) {
			require.Equal(t, "$0", slot, "the command had its own way with the slots: %s", call)
		}
	}
	require.Equal(t, "report(started)", parts["init"][len(parts["init"])-1], "PID 1 is harmless before anybody hears of the run")
}

var (
	quoted   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	slotName = regexp.MustCompile(`\$[0-9]+`)
	result   = regexp.MustCompile(`^(\$[0-9]+) = (.*)$`)
	closing  = regexp.MustCompile(`^close\((\$[0-9]+)\)$`)
)

func slotUses(call string) []string {
	return slotName.FindAllString(quoted.ReplaceAllString(call, ""), -1)
}

// checkSlots follows the descriptors: none is used that is not open, and none is forgotten by
// putting another into its slot.
func checkSlots(t testing.TB, files int, calls []string) {
	t.Helper()
	open := map[string]bool{}
	for i := range files {
		open[fmt.Sprintf("$%d", i)] = true
	}
	for _, call := range calls {
		to := ""
		if m := result.FindStringSubmatch(call); m != nil {
			to, call = m[1], m[2]
		}
		for _, slot := range slotUses(call) {
			require.True(t, open[slot], "%s is not open in %s", slot, call)
		}
		if m := closing.FindStringSubmatch(call); m != nil {
			delete(open, m[1])
		}
		if to != "" {
			require.True(t, to == "$0" || !open[to], "%s is still open at %s", to, call)
			open[to] = true
		}
	}
}

// checkAfterPivot requires that what comes after can't see the cell.
func checkAfterPivot(t testing.TB, parts map[string][]string) {
	t.Helper()
	at := slices.Index(parts["setup"], `pivot_root(".", ".")`)
	require.GreaterOrEqual(t, at, 0)
	require.Equal(t, []string{`chdir("/")`}, parts["setup"][at+1:])
	require.True(t, strings.HasPrefix(parts["setup"][at-1], "fchdir("))
	gone := slices.Index(parts["command"], `umount2(".", MNT_DETACH)`)
	require.GreaterOrEqual(t, gone, 0)
	for _, call := range parts["command"][:gone] {
		require.Regexp(t, `^(setsid|store|sendmsg)\(`, call, "the cell is still there")
	}
	for _, call := range slices.Concat(parts["setup"][at:], parts["command"], parts["init"]) {
		require.NotContains(t, call, `"/cell`)
	}
}

// requireFilterLast requires that nothing comes after the filter but to hand over its listener, if
// it has one.
func requireFilterLast(t testing.TB, c *spec.Spec, calls []string) {
	t.Helper()
	last, load := len(calls)-1, "seccomp(SECCOMP_SET_MODE_FILTER"
	if c.Security.Notify {
		slot := closing.FindStringSubmatch(calls[last])
		require.NotNil(t, slot, "%s: the command keeps the listener", calls[last])
		require.Contains(t, calls[last-1], "{listener, SCM_RIGHTS "+slot[1]+"}")
		last, load = last-3, slot[1]+" = "+load
	}
	require.True(t, strings.HasPrefix(calls[last], load), calls[last])
	require.Equal(t, "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)", calls[last-1])
}

// checkCommand requires that the command's program executes the command, having loaded a filter of
// the user's own last.
func checkCommand(t testing.TB, c *spec.Spec) {
	t.Helper()
	p, err := compile.Command(c, goldenMachine())
	if own := c.Security.Seccomp; c.Security.Notify && own != nil && own.DefaultAction != specs.ActAllow {
		require.ErrorContains(t, err, "WithRefusals: ")
		return
	}
	require.NoError(t, err)
	requireLoads(t, p)
	filled := len(c.Root.Layout(spec.Found{}).Filled)
	parts, files := calls(p), 1+filled+3+len(c.Streams.Extra)
	require.Len(t, parts, 1)
	require.Equal(t, files, p.Files())
	command := parts["command"]
	checkSlots(t, files, command)
	for i := range filled {
		require.Contains(t, command, fmt.Sprintf("close($%d)", 1+i), "the run never has a file open for writing that it can't open")
	}
	places := len(spec.LookupList(c.Command.Argv[0], c.Command.Environ()))
	end := len(command) - 1
	require.True(t, strings.HasPrefix(command[end], "not found: "), command[end])
	for _, call := range command[end-places : end] {
		require.True(t, strings.HasPrefix(call, "execve("), call)
	}
	rest := command[:end-places]
	switch {
	case c.Security.NoSeccomp:
		require.Equal(t, "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)", rest[len(rest)-1])
	case c.Security.Seccomp != nil:
		requireFilterLast(t, c, rest)
	}
}

// checkPrivileges requires that privileges are dropped once the command is in its cgroup.
func checkPrivileges(t testing.TB, c *spec.Spec, command, setup []string) {
	t.Helper()
	rest := command
	ready := slices.IndexFunc(rest, func(call string) bool { return strings.HasPrefix(call, "sendmsg($0, {ready") })
	capset := slices.IndexFunc(rest, func(call string) bool { return strings.HasPrefix(call, "capset(") })
	require.Greater(t, capset, ready, "joins its cgroup with the capabilities of root")
	require.Positive(t, ready)
	var dropped int
	for _, call := range slices.Concat(setup, rest) {
		if strings.HasPrefix(call, "prctl(PR_CAPBSET_DROP") {
			dropped++
		}
	}
	kept := map[string]bool{}
	for _, name := range c.Security.Capabilities {
		if spec.CapabilityNumber(name) <= goldenMachine().LastCap {
			kept[name] = true
		}
	}
	require.Equal(t, goldenMachine().LastCap+1-len(kept), dropped)
}

// checkHostIDs requires that root's rights to files end before anything is put where options say,
// and PID 1's ids before it says that the command was started. It returns the rest of what PID 1
// does.
func checkHostIDs(t testing.TB, c *spec.Spec, parts map[string][]string) []string {
	t.Helper()
	at := slices.Index(parts["setup"], fmt.Sprintf("setfsuid(%d)", c.Namespaces.UID))
	require.Positive(t, at)
	require.Equal(t, fmt.Sprintf("setfsgid(%d)", c.Namespaces.GID), parts["setup"][at-1])
	for i, call := range parts["setup"] {
		if strings.Contains(call, "unlinkat(") || strings.Contains(call, "RESOLVE_IN_ROOT") && strings.Contains(call, `"/`) && !strings.Contains(call, `"/proc`) && !strings.Contains(call, `"/usr"`) && !strings.Contains(call, `"/lib`) && !strings.Contains(call, `"/var/`) {
			require.Greater(t, i, at, call)
		}
	}
	for part, list := range parts {
		for _, call := range list {
			require.NotContains(t, call, "/proc/sys/", part)
			require.NotContains(t, call, "CLONE_NEWUSER", part)
		}
	}
	require.Equal(t, []string{"setresgid(65534, 65534, 65534)", "setresuid(65534, 65534, 65534)", "prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)"}, parts["init"][:3])
	return parts["init"][3:]
}

// TestRandomOptions compiles sandboxes of random options.
func TestRandomOptions(t *testing.T) {
	compiled := 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 7))
		g := &generator{next: func(n int) int { return r.IntN(n) }, tame: true}
		c := describe(append([]sandbox.Option{valid}, g.options()...)...)
		if len(c.Check()) > 0 {
			continue // mounts over each other
		}
		compiled++
		p, err := compile.New(c, goldenMachine(), compile.Shape{SingleID: seed%3 == 0}, compile.Found{Missing: emptyRoot(c)})
		require.NoError(t, err, "seed %d", seed)
		again, err := compile.New(c, goldenMachine(), compile.Shape{SingleID: seed%3 == 0}, compile.Found{Missing: emptyRoot(c)})
		require.NoError(t, err)
		require.Equal(t, p.Run.Image(), again.Run.Image(), "seed %d", seed)
		checkPlan(t, c, p)
		if sandbox.WithoutUserNamespace()(c); len(c.Check()) == 0 {
			p, err := compile.New(c, goldenMachine(), compile.Shape{HostIDs: true}, compile.Found{Missing: emptyRoot(c)})
			require.NoError(t, err, "seed %d", seed)
			checkPlan(t, c, p)
		}
		if seed%3 == 0 {
			require.NotContains(t, p.Run.Explain(), "setresuid", "seed %d", seed)
		}
	}
	require.Greater(t, compiled, 300)
}

func FuzzOptions(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x04/bin\x01\x03A=b\x10\x02/a\x11\x05/host\x04/dst"))
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 8))
		b := make([]byte, 64)
		for i := range b {
			b[i] = byte(r.IntN(30))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := int(data[0])
			data = data[1:]
			return b % n
		}
		g := &generator{next: next, rest: &data}
		c := describe(append([]sandbox.Option{valid}, g.options()...)...)
		if len(c.Check()) > 0 {
			return
		}
		command, err := compile.Command(c, goldenMachine())
		if err != nil {
			require.NotNil(t, c.Security.Seccomp, "valid options: %v", err)
			return
		}
		requireLoads(t, command)
		p, err := compile.New(c, goldenMachine(), compile.Shape{SingleID: next(2) == 1, WideIDs: next(2) == 1}, compile.Found{Missing: emptyRoot(c)})
		require.NoError(t, err, "valid options")
		requireLoads(t, p.Run)
		requireLoads(t, p.Template)
	})
}

// emptyRoot returns what is missing if a DirRootfs is an empty directory.
func emptyRoot(c *spec.Spec) (missing []compile.Point) {
	if len(c.Root.Rootfs.Layers) == 0 {
		return nil
	}
	l := c.Root.Layout(spec.Found{})
	for _, dir := range l.Mkdirs {
		missing = append(missing, compile.Point{Path: dir})
	}
	for _, m := range l.Mounts {
		if m.IsFile() && m.On == nil && c.Root.Writable == 0 {
			missing = append(missing, compile.Point{Path: m.Dst, File: true})
		} else if m.IsFile() && m.On == nil && path.Dir(m.Dst) != "/" {
			missing = append(missing, compile.Point{Path: path.Dir(m.Dst)})
		}
	}
	return missing
}
