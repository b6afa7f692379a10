package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// valid is what every sandbox of these tests begins with.
var valid = WithCommand("true")

func repeated(n int, opt func(i int) Option) (opts []Option) {
	for i := range n {
		opts = append(opts, opt(i))
	}
	return opts
}

func nulls(n int) (files []*os.File) {
	for range n {
		files = append(files, os.Stdin)
	}
	return files
}

// wrong lists every way in which options can be wrong, with what the error says.
var wrong = []struct {
	name string
	opts []Option
	want string
}{
	{"the host's root", []Option{WithoutUserNamespace(), WithUser(0, 1)}, "WithUser: 0:1: with WithoutUserNamespace that is the host's root"},
	{"the host's root group", []Option{WithoutUserNamespace(), WithGroups(7, 0)}, "WithGroups: 0: with WithoutUserNamespace that is the host's group of root"},
	{"the host's root group", []Option{WithUser(1, 0), WithoutUserNamespace()}, "WithUser: 1:0: with WithoutUserNamespace that is the host's root"},
	{"the host's capabilities", []Option{WithoutUserNamespace(), WithCapabilities("CAP_KILL")}, "WithCapabilities: with WithoutUserNamespace capabilities are the host's"},
	{"the host's clocks", []Option{WithoutUserNamespace(), WithTimeOffset(1)}, "WithTimeOffset: with WithoutUserNamespace that takes CAP_SYS_TIME"},
	{"two walls less", []Option{WithoutUserNamespace(), WithoutSeccomp()}, "WithoutSeccomp: with WithoutUserNamespace seccomp is"},
	{"capabilities for the host's files", []Option{WithCapabilities("CAP_SETFCAP")}, "WithCapabilities: CAP_SETFCAP is not given to runs"},
	{"set-uid bits without the filter", []Option{WithSetID(), WithoutSeccomp()}, "WithSetID: means nothing with WithSeccomp or WithoutSeccomp"},
	{"set-uid bits with a filter of one's own", []Option{WithSetID(), WithSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow})}, "WithSetID: means nothing with WithSeccomp or WithoutSeccomp"},
	{"refusals without the filter", []Option{WithRefusals(func(Refusal) {}), WithoutSeccomp()}, "WithRefusals: with WithoutSeccomp nothing is refused by a filter"},
	{"no command", []Option{WithCommand("")}, "WithCommand: no command is set"},
	{"zero byte in the command", []Option{WithCommand("tr\x00ue")}, `WithCommand: "tr\x00ue" contains a zero byte`},
	{"zero byte in an argument", []Option{WithCommand("echo", "a", "b\x00")}, `WithCommand: "b\x00" contains a zero byte`},
	{"zero byte in the environment", []Option{WithEnv("A=\x00")}, `WithEnv: "A=\x00" contains a zero byte`},
	{"variable without value", []Option{WithEnv("A=1", "HOME")}, `WithEnv: "HOME" does not have the form KEY=value`},
	{"variable without name", []Option{WithEnv("=x")}, `WithEnv: "=x" does not have the form KEY=value`},
	{"empty variable", []Option{WithEnv("")}, `WithEnv: "" does not have the form KEY=value`},
	{"relative directory", []Option{WithDir("tmp")}, `WithDir: "tmp" is not an absolute path`},
	{"zero byte in the directory", []Option{WithDir("/\x00")}, `WithDir: "/\x00" contains a zero byte`},
	{"long directory", []Option{WithDir("/" + strings.Repeat("d", 4095))}, "WithDir: a path of 4096 bytes is longer than 4095"},
	{"negative time", []Option{WithTimeout(-time.Second)}, "WithTimeout: -1s is not a positive duration"},
	{"negative wait delay", []Option{WithWaitDelay(-1)}, "WithWaitDelay: -1ns is negative: 0 waits without a limit"},
	{"prepared", []Option{WithPrepared(-1)}, "WithPrepared: -1 is not between 0 and 1000"},
	{"too many prepared", []Option{WithPrepared(1001)}, "WithPrepared: 1001 is not between 0 and 1000"},
	{"negative output", []Option{WithOutputLimit(-1)}, "WithOutputLimit: -1 is not a positive number of bytes"},
	{"too many files", []Option{WithExtraFiles(nulls(60)...), WithExtraFiles(nulls(41)...)}, "WithExtraFiles: 101 files, at most 100 are possible"},
	{"nil file", []Option{WithExtraFiles(os.Stdin, nil)}, "WithExtraFiles: file 1 is nil"},
	{"nil input", []Option{WithStdin((*os.File)(nil))}, "WithStdin: the file is nil"},
	{"nil output", []Option{WithStdout((*os.File)(nil))}, "WithStdout: the file is nil"},
	{"nil error output", []Option{WithStderr((*os.File)(nil))}, "WithStderr: the file is nil"},
	{"nil cell", []Option{WithCell(nil)}, "WithCell: the cell was not made by NewCell"},
	{"cell of nothing", []Option{WithCell(&Cell{})}, "WithCell: the cell was not made by NewCell"},

	{"negative swap", []Option{WithMemory(MiB), WithSwap(-1)}, "WithSwap: -1 is not a number of bytes"},
	{"swap alone", []Option{WithSwap(MiB)}, "WithSwap: means nothing without WithMemory"},
	{"memory in MiB", []Option{WithMemory(64)}, "WithMemory: 64 bytes is less than the least that makes sense, 65536"},
	{"negative memory", []Option{WithMemory(-1)}, "WithMemory: -1 bytes is less than"},
	{"negative CPUs", []Option{WithCPUs(-1)}, "WithCPUs: -1 is not between"},
	{"more CPUs than there are", []Option{WithCPUs(float64(runtime.NumCPU()) + 0.01)}, "WithCPUs: "},
	{"infinitely many CPUs", []Option{WithCPUs(math.Inf(1))}, "WithCPUs: +Inf is not between"},
	{"CPUs that are no number", []Option{WithCPUs(math.NaN())}, "WithCPUs: NaN is not between"},
	{"more than all weight", []Option{WithCPUWeight(10001)}, "WithCPUWeight: 10001 is not between 1 and 10000"},
	{"large weight", []Option{WithCPUWeight(10001)}, "WithCPUWeight: 10001 is not between"},
	{"empty cpuset", []Option{WithCPUSet("")}, `WithCPUSet: "" is not a list of CPUs such as 0-2,5`},
	{"cpuset upside down", []Option{WithCPUSet("2-1")}, `WithCPUSet: "2-1" is not a list`},
	{"cpuset with a hole", []Option{WithCPUSet("1,,2")}, `WithCPUSet: "1,,2" is not a list`},
	{"cpuset with a space", []Option{WithCPUSet("0, 1")}, `WithCPUSet: "0, 1" is not a list`},
	{"cpuset in words", []Option{WithCPUSet("all")}, `WithCPUSet: "all" is not a list`},
	{"endless cpuset", []Option{WithCPUSet("0-")}, `WithCPUSet: "0-" is not a list`},
	{"fewer than no processes", []Option{WithPIDs(-1)}, "WithPIDs: -1 is less than 1"},
	{"negative processes", []Option{WithPIDs(-5)}, "WithPIDs: -5 is less than 1"},
	{"more processes than there can be", []Option{WithPIDs(4194305)}, "WithPIDs: 4194305 is more than a machine can have, 4194304"},
	{"negative CPU time", []Option{WithCPUTime(-1)}, "WithCPUTime: -1ns is not a positive duration"},
	{"relative device path", []Option{WithIO(IOLimit{Path: "dev/sda", ReadBytes: 1})}, `WithIO: "dev/sda" is not an absolute path: filepath.Abs returns one of this machine`},
	{"unknown rlimit", []Option{WithRlimit("files", 1, 1)}, `WithRlimit: "files" is unknown: use one of as, core`},
	{"soft above hard", []Option{WithRlimit("nofile", 2, 1)}, "WithRlimit: nofile: the soft limit 2 is above the hard limit 1"},
	{"relative cgroup", []Option{WithCgroupParent("a/b")}, `WithCgroupParent: "a/b" is not an absolute path`},
	{"roundabout cgroup", []Option{WithCgroupParent("/a/../b")}, `WithCgroupParent: "/a/../b" is not in its shortest form, "/b"`},
	{"cgroup of two lines", []Option{WithCgroupParent("/a\nb")}, `WithCgroupParent: "/a\nb" contains a line break`},
	{"cgroup as a directory", []Option{WithCgroupParent("/sys/fs/cgroup/jobs")}, `WithCgroupParent: "/sys/fs/cgroup/jobs" begins with where cgroups are mounted: leave that out`},
	{"zero byte in the cgroup", []Option{WithCgroupParent("/a\x00")}, `WithCgroupParent: "/a\x00" contains a zero byte`},

	{"beyond all clocks", []Option{WithTimeOffset(-150 * 365 * 24 * time.Hour)}, "WithTimeOffset: -1314000h0m0s is more than 146 years"},
	{"empty host name", []Option{WithHostname("")}, "WithHostname: the name is empty"},
	{"long host name", []Option{WithHostname(strings.Repeat("h", 65))}, `WithHostname: "` + strings.Repeat("h", 65) + `" is longer than 64 bytes`},
	{"zero byte in the host name", []Option{WithHostname("a\x00")}, `WithHostname: "a\x00" contains a character`},
	{"host name of two lines", []Option{WithHostname("a\nroot")}, `WithHostname: "a\nroot" contains a character`},
	{"host name with an escape", []Option{WithHostname("a\x1b[1m")}, `WithHostname: "a\x1b[1m" contains a character`},
	{"host name with a delete", []Option{WithHostname("a\x7f")}, `WithHostname: "a\x7f" contains a character`},
	{"host name beyond ASCII", []Option{WithHostname("bücher")}, `WithHostname: "bücher" contains a character`},
	{"host name of bytes", []Option{WithHostname("\xff")}, `WithHostname: "\xff" contains a character`},
	{"host name and port", []Option{WithHostname("a:1")}, `WithHostname: "a:1" contains a character`},
	{"negative uid", []Option{WithUser(-1, 1)}, "WithUser: -1:1: ids go from 0 to 65533"},
	{"negative gid", []Option{WithUser(1, -1)}, "WithUser: 1:-1: ids go from 0 to 65533"},
	{"negative group", []Option{WithGroups(7, -1)}, "WithGroups: -1: ids go from 0 to 65533"},
	{"large group", []Option{WithGroups(65534)}, "WithGroups: 65534: ids go from 0 to 65533"},
	{"many groups", []Option{WithGroups(make([]int, 257)...)}, "WithGroups: 257 groups, at most 256 are possible"},
	{"large uid", []Option{WithUser(65534, 1)}, "WithUser: 65534:1: ids go from 0 to 65533"},
	{"no network", []Option{WithNetwork(nil)}, "WithNetwork: nil is no network"},

	{"relative root", []Option{WithRootfs(DirRootfs("root"))}, `WithRootfs: "root" is not an absolute path: filepath.Abs returns one of this machine`},
	{"empty root", []Option{WithRootfs(DirRootfs(""))}, `WithRootfs: "" is not an absolute path`},
	{"no layers", []Option{WithRootfs(LayersRootfs())}, `WithRootfs: LayersRootfs: no directory is given`},
	{"relative layer", []Option{WithRootfs(LayersRootfs("/a", "b"))}, `WithRootfs: "b" is not an absolute path: filepath.Abs returns one of this machine`},
	{"a layer twice", []Option{WithRootfs(LayersRootfs("/a", "/b", "/a/"))}, `WithRootfs: LayersRootfs: /a is given twice`},
	{"too many layers", []Option{WithRootfs(LayersRootfs(manyLayers()...))}, `WithRootfs: LayersRootfs: 65 layers, at most 64 are possible`},
	{"zero byte in the root", []Option{WithRootfs(DirRootfs("/a\x00"))}, `WithRootfs: "/a\x00" contains a zero byte`},
	{"less than no room for changes", []Option{WithWritableRoot(-1)}, "WithWritableRoot: -1 is not a positive number of bytes"},
	{"relative target", []Option{WithBind("/a", "b")}, `WithBind: "b" is not an absolute path`},
	{"relative source", []Option{WithReadOnlyBind("a", "/b")}, `WithReadOnlyBind: "a" is not an absolute path: filepath.Abs returns one of this machine`},
	{"zero byte in a source", []Option{WithBind("/a\x00", "/b")}, `WithBind: "/a\x00" contains a zero byte`},
	{"zero byte in a target", []Option{WithTmpfs("/a\x00", 1)}, `WithTmpfs: "/a\x00" contains a zero byte`},
	{"bind over the root", []Option{WithBind("/a", "/")}, "WithBind: /: use WithRootfs"},
	{"roundabout root", []Option{WithBind("/a", "/b/..")}, "WithBind: /: use WithRootfs"},
	{"bind over /proc", []Option{WithBind("/a", "/proc/")}, "WithBind: /proc: /proc is the run's own"},
	{"file in /proc", []Option{WithFile("/proc/x", nil, 0)}, "WithFile: /proc/x: /proc is the run's own"},
	{"tmpfs over /dev", []Option{WithTmpfs("/dev", 1)}, "WithTmpfs: /dev: /dev is the run's own, but for /dev/shm"},
	{"bind in /dev", []Option{WithBind("/a", "/dev/shmx")}, "WithBind: /dev/shmx: /dev is the run's own, but for /dev/shm"},
	{"negative tmpfs", []Option{WithTmpfs("/a", -1)}, "WithTmpfs: /a: -1 is not a positive number of bytes"},
	{"set-uid file", []Option{WithFile("/a", nil, fs.ModeSetuid|0o755)}, "WithFile: /a: mode urwxr-xr-x is more than permission bits"},
	{"twice the same place", []Option{WithBind("/x", "/a"), WithTmpfs("/a/", 1)}, "WithTmpfs: /a: hides what WithBind puts there"},
	{"twice the same place, by a link of the root", []Option{WithBind("/x", "/run/a"), WithTmpfs("/var/run/a", 1)}, "WithTmpfs: /run/a: hides what WithBind puts there"},
	{"file in a bind, by a link of the root", []Option{WithBind("/x", "/tmp"), WithFile("/var/tmp/a", nil, 0)}, "WithFile: /tmp/a: lies in the bind of /x: write the file there"},
	{"file in a bind", []Option{WithBind("/x", "/a"), WithFile("/a/b/c", nil, 0)}, "WithFile: /a/b/c: lies in the bind of /x: write the file there"},
	{"file in a read-only bind", []Option{WithFile("/a/b", nil, 0), WithReadOnlyBind("/x", "/a")}, "WithFile: /a/b: lies in the bind of /x"},
	{"file below a file", []Option{WithFile("/a", nil, 0), WithFile("/a/b", nil, 0)}, "WithFile: /a/b: lies below the file /a"},
	{"tmpfs below a file", []Option{WithTmpfs("/a/b", 1), WithFile("/a", nil, 0)}, "WithTmpfs: /a/b: lies below the file /a"},
	{"too many bytes", []Option{WithFile("/a", make([]byte, MiB), 0), WithFile("/b", []byte("x"), 0)}, "WithFile: 1048577 bytes together, at most 1048576 are possible"},
	{"too many binds", repeated(101, func(i int) Option { return WithBind("/x", fmt.Sprint("/a", i)) }), "WithBind: 101 binds, at most 100 are possible"},

	{"unknown capability", []Option{WithCapabilities("CAP_KILL", "KILL")}, `WithCapabilities: "KILL" is unknown: names look like CAP_NET_BIND_SERVICE`},
	{"no scratch for a root", []Option{WithScratchRoot(nil)}, `WithScratchRoot: the scratch was not made by NewScratch: look at the error of that`},
	{"no scratch of NewScratch for a root", []Option{WithScratchRoot(new(Scratch))}, `WithScratchRoot: the scratch was not made by NewScratch: look at the error of that`},
	{"prepared runs for a scratch", []Option{WithPrepared(1), withAnyScratchRoot}, `WithPrepared: with WithScratchRoot`},
	{"the host's ids in a scratch", []Option{WithoutUserNamespace(), withAnyScratchRoot}, `WithScratchRoot: with WithoutUserNamespace`},
}

// withAnyScratchRoot sets a scratch for the changes of the root. Programs can be compiled for it; a
// run with it does not start.
func withAnyScratchRoot(c *spec.Spec) { c.Root.SetUpper(new(scratchImpl), MiB) }

func manyLayers() (dirs []string) {
	for i := range 65 {
		dirs = append(dirs, fmt.Sprint("/", i))
	}
	return dirs
}

func TestWrongOptions(t *testing.T) {
	for _, test := range wrong {
		t.Run(test.name, func(t *testing.T) {
			errs := New(append([]Option{valid}, test.opts...)...).is.Spec.Check()
			require.Len(t, errs, 1)
			requireOptionError(t, errs[0], "sandbox: "+test.want)
		})
	}
}

// requireOptionError requires that err is an *OptionError of the option that text begins with.
func requireOptionError(t *testing.T, err error, text string) {
	t.Helper()
	wrong := &OptionError{}
	require.ErrorAs(t, err, &wrong)
	require.True(t, strings.HasPrefix(err.Error(), text), "%q does not begin with %q", err, text)
	require.True(t, strings.HasPrefix(text, "sandbox: "+wrong.Option+": "), "%q is not of %s", text, wrong.Option)
	require.EqualError(t, err, "sandbox: "+wrong.Option+": "+wrong.Err.Error())
}

// TestAllErrorsAtOnce has one wrong value of each option in one sandbox.
func TestAllErrorsAtOnce(t *testing.T) {
	once := map[string]bool{}
	var opts []Option
	var want []string
	for _, test := range wrong {
		option, _, _ := strings.Cut(test.want, ":")
		if option == "WithScratchRoot" {
			continue // if WithWritableRoot is given too, the last one counts
		}
		if strings.HasPrefix(option, "With") && !once[option] {
			once[option] = true
			opts = append(opts, test.opts...)
			want = append(want, test.want)
		}
	}
	require.Greater(t, len(want), 20)
	errs := New(opts...).is.Spec.Check()
	err := errors.Join(errs...)
	for _, text := range want {
		require.ErrorContains(t, err, text)
	}
	named := map[string]bool{"WithScratchRoot": true}
	for _, err := range errs {
		wrong := &OptionError{}
		require.ErrorAs(t, err, &wrong)
		named[wrong.Option] = true
	}
	for option := range once {
		require.True(t, named[option], option)
	}
}

// TestWrongArguments makes calls that are wrong themselves, for a sandbox that is not.
func TestWrongArguments(t *testing.T) {
	set := New(valid, WithStdout(&bytes.Buffer{}), WithStderr(&bytes.Buffer{}))
	_, err := set.Output(t.Context())
	requireOptionError(t, err, "sandbox: WithStdout: is set already: leave it out for Output")
	_, err = set.CombinedOutput(t.Context())
	both, ok := err.(interface{ Unwrap() []error })
	require.True(t, ok)
	require.Len(t, both.Unwrap(), 2)
	requireOptionError(t, both.Unwrap()[0], "sandbox: WithStdout: is set already: leave it out for CombinedOutput")
	requireOptionError(t, both.Unwrap()[1], "sandbox: WithStderr: is set already: leave it out for CombinedOutput")
	_, err = NewScratch(0)
	requireOptionError(t, err, "sandbox: NewScratch: 0 is not a positive number of bytes")
	_, err = NewDiskScratch("/var/tmp", MiB-1)
	requireOptionError(t, err, "sandbox: NewDiskScratch: 1048575 bytes are too few for a file system: ask for 1 MiB at least")
	_, err = New(valid).RootChanges()
	requireOptionError(t, err, "sandbox: WithScratchRoot: is missing: RootChanges tells")
}

func TestCommandIsRequired(t *testing.T) {
	errs := New().is.Spec.Check()
	require.Len(t, errs, 1)
	requireOptionError(t, errs[0], "sandbox: WithCommand: no command is set")
}

func TestGoodOptions(t *testing.T) {
	tests := map[string][]Option{
		"nothing else":          nil,
		"nil":                   {nil},
		"equals sign in value":  {WithEnv("A=b=c", "EMPTY=")},
		"least memory":          {WithMemory(64 * KiB), WithSwap(0)},
		"least CPUs":            {WithCPUs(0.01), WithCPUWeight(1), WithCPUSet("0-2,5,7-7")},
		"all CPUs":              {WithCPUs(float64(runtime.NumCPU())), WithCPUWeight(10000)},
		"rlimits":               {WithRlimit("core", 0, RlimitInfinity), WithRlimit("nofile", 5, 5)},
		"longest host name":     {WithHostname(strings.Repeat("h", 64))},
		"odd host name":         {WithHostname("!_.-~")},
		"most processes":        {WithPIDs(4194304)},
		"root":                  {WithUser(0, 0)},
		"largest ids":           {WithUser(65533, 65533)},
		"most groups":           {WithGroups(make([]int, 256)...)},
		"no groups":             {WithGroups(-1), WithGroups()},
		"shared memory":         {WithTmpfs("/dev/shm", 1), WithFile("/dev/shm/a/b", nil, 0o600)},
		"tmpfs in a bind":       {WithBind("/x", "/a"), WithTmpfs("/a/b", 1), WithFile("/a/b/c", nil, 0)},
		"bind in a bind":        {WithBind("/x", "/a"), WithReadOnlyBind("/y", "/a/b")},
		"names with a prefix":   {WithFile("/a", nil, 0), WithFile("/ab", nil, 0), WithBind("/x", "/abc")},
		"as much as there can":  {WithFile("/a", make([]byte, MiB), 0o777), WithExtraFiles(nulls(100)...)},
		"as many binds":         repeated(100, func(i int) Option { return WithBind("/x", fmt.Sprint("/a", i)) }),
		"all capabilities":      {WithCapabilities("CAP_CHOWN", "CAP_CHECKPOINT_RESTORE", "CAP_CHOWN")},
		"a path like no option": {WithDir("/../..//x"), WithCgroupParent("/a/b")},
	}
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			require.Empty(t, New(append([]Option{valid}, opts...)...).is.Spec.Check())
		})
	}
}

// TestZeroIsNoLimit takes limits away that were set.
func TestZeroIsNoLimit(t *testing.T) {
	zeros := []Option{WithTimeout(0), WithOutputLimit(0), WithMemory(0), WithSwap(0), WithCPUs(0), WithCPUWeight(0), WithPIDs(0), WithCPUTime(0),
		WithIO(IOLimit{Path: "/dev/sda"}), WithWritableRoot(0)}
	limited := New(valid, WithTimeout(1), WithOutputLimit(1), WithMemory(MiB), WithCPUs(0.5), WithCPUWeight(1), WithPIDs(1), WithCPUTime(1), WithWritableRoot(1))
	for _, s := range []*Sandbox{New(valid).With(zeros...), limited.With(zeros...)} {
		c := s.is.Spec
		require.Empty(t, c.Check())
		require.Zero(t, c.Supervision.Timeout)
		require.Zero(t, c.Supervision.OutputLimit)
		require.Equal(t, spec.Limits{}, c.Limits)
		require.Zero(t, c.Root.Writable)
	}
	require.Equal(t, spec.Tmpfs{Size: 256 * MiB}, New(WithTmpfs("/a", 0)).is.Spec.Root.Mounts[0].Source)
}
