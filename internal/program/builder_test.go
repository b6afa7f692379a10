//go:build linux

package program

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBuilderErrors(t *testing.T) {
	tests := []struct {
		name  string
		build func(b *Builder)
		want  string
	}{
		{"seven arguments", func(b *Builder) {
			b.Call("many", 1, Int(1), Int(2), Int(3), Int(4), Int(5), Int(6), Int(7))
		}, "many: more than six arguments"},
		{"large argument", func(b *Builder) { b.Call("seek", 1, Int(1<<32)) }, "seek: argument 4294967296 is larger than 32 bits"},
		{"zero byte", func(b *Builder) { b.Str("a\x00b") }, `"a\x00b" contains a zero byte`},
		{"zero byte in a list", func(b *Builder) { b.Strings([]string{"a", "\x00"}) }, `"\x00" contains a zero byte`},
		{"too many files", func(b *Builder) {
			for range MaxFiles {
				b.File("f")
			}
		}, "more than 253 descriptors"},
		{"too many results", func(b *Builder) {
			for range MaxSlots {
				b.CallTo("open", 1)
			}
		}, "more than 512 results in use"},
		{"file after the results took its slot", func(b *Builder) {
			for range MaxSlots - 1 {
				b.CallTo("open", 1)
			}
			b.File("f")
		}, "declared before the first result"},
		{"too much data", func(b *Builder) { b.Bytes(make([]byte, MaxImage+1), "much") },
			"arguments, environment and paths are larger than 8388608 bytes together"},
		{"too many calls", func(b *Builder) {
			for range MaxImage/opSize + 1 {
				b.Call("getpid", 1)
			}
		}, "is larger than 8388608"},
		{"the first error is kept", func(b *Builder) {
			b.Str("first\x00")
			b.Str("second\x00")
		}, "first"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := NewBuilder()
			test.build(b)
			p, err := b.Program()
			require.ErrorContains(t, err, test.want)
			require.Nil(t, p)
		})
	}
}

func TestBuilderLimitsAreReachable(t *testing.T) {
	b := NewBuilder()
	for range MaxFiles - 1 { // the socket is one, too
		b.File("f")
	}
	for range MaxSlots - MaxFiles {
		b.CallTo("open", 1)
	}
	p, err := b.Program()
	require.NoError(t, err)
	require.Equal(t, MaxFiles, p.Files())
	loaded(t, p)
}

func TestSlotsAreReused(t *testing.T) {
	b := NewBuilder()
	first := b.CallTo("open", 1)
	second := b.CallTo("open", 1)
	require.NotEqual(t, first, second)
	b.Free(first)
	require.Equal(t, first, b.CallTo("open", 1))
	for range 4 * MaxSlots {
		b.Close(b.CallTo("open", 1))
	}
	_, err := b.Program()
	require.NoError(t, err)
}

func TestStringsAreStoredOnce(t *testing.T) {
	b := NewBuilder()
	require.Equal(t, b.Str("same"), b.Str("same"))
	require.NotEqual(t, b.Str("same").val, b.Str("other").val)
	// Data that the kernel may write to is stored each time.
	require.NotEqual(t, b.Bytes([]byte("same"), "").val, b.Bytes([]byte("same"), "").val)
}

func TestProgramDescribesItself(t *testing.T) {
	b := NewBuilder()
	in := b.File("input")
	b.In(Init)
	b.Stage("last")
	b.Event(Started)
	b.In(Setup)
	b.Stage("first")
	fd := b.CallTo("openat", 257, AtCWD, b.Str("/etc/passwd"), Int(0, "O_RDONLY"))
	b.Wait(in)
	b.In(Command)
	b.Stage("second")
	b.Close(fd)
	p, err := b.Program()
	require.NoError(t, err)

	require.Equal(t, `$0 = received: socket to the host
$1 = received: input
setup:
  # first
  $511 = openat(AT_FDCWD, "/etc/passwd", O_RDONLY)
  read($1, buf, 1)
command:
  # second
  close($511)
init:
  # last
  report(started)
`, p.Explain())

	tests := []struct {
		index       int
		stage, call string
	}{
		{0, "first", `$511 = openat(AT_FDCWD, "/etc/passwd", O_RDONLY)`},
		{1, "first", "read($1, buf, 1)"},
		{2, "second", "close($511)"},
		{3, "last", "report(started)"},
		{4, "unknown stage", "call 4"},
		{-1, "unknown stage", "call -1"},
	}
	for _, test := range tests {
		call := p.Call(test.index)
		require.Equal(t, test.stage, call.Stage)
		require.Equal(t, test.call, call.Text)
	}
}

func TestCallsHaveAnIdentity(t *testing.T) {
	b := NewBuilder()
	b.StageFor(Exec, "exec job")
	fd := b.CallTo("openat", 257)
	b.For(OwnPlace, func() { b.Call("move_mount", 429) })
	b.Call("execve", 59)
	b.Stage("end")
	b.Close(fd)
	p, err := b.Program()
	require.NoError(t, err)
	p = p.Failing(2, 1)
	for i, want := range []Call{{257, Exec, "exec job", "$511 = openat()"}, {429, OwnPlace, "exec job", "move_mount()"},
		{59, Exec, "exec job", "execve()"}, {unix.SYS_CLOSE, General, "end", "close($511)"}} {
		require.Equal(t, want, p.Call(i))
	}
}

func TestExplainOfATask(t *testing.T) {
	b := NewBuilder()
	b.Call("sync", 162)
	p, err := b.Program()
	require.NoError(t, err)
	require.Contains(t, p.Explain(), "setup:\n")
	require.NotContains(t, p.Explain(), "command:")
	require.NotContains(t, p.Explain(), "init:")
}

func TestSameCallsSameImage(t *testing.T) {
	build := func() []byte {
		b := NewBuilder()
		b.Mkdir(AtCWD, "/a/b", 0o755)
		b.Call("execve", 59, b.Str("/bin/true"), b.Strings([]string{"true", "x"}), b.Strings(nil))
		p, err := b.Program()
		require.NoError(t, err)
		return p.Image()
	}
	require.Equal(t, build(), build())
}

func TestMkdirAllMakesWhatIsMissing(t *testing.T) {
	tests := []struct {
		have, path string
		want       []string
	}{
		{"/", "/a/b", []string{`"a"`, `"b"`}},
		{"/a", "/a/b/c", []string{`"b"`, `"c"`}},
		{"/a", "/a", nil},
		{"/", "/", nil},
	}
	for _, test := range tests {
		b := NewBuilder()
		root := b.File("root")
		b.MkdirAll(root, test.have, test.path)
		p, err := b.Program()
		require.NoError(t, err)
		var made []string
		for i := range p.lines {
			if text := p.Call(i).Text; strings.HasPrefix(text, "mkdirat") {
				made = append(made, strings.Split(text, ", ")[1])
			}
		}
		require.Equal(t, test.want, made, "%s in %s", test.path, test.have)
	}
}

func TestParseEvent(t *testing.T) {
	want := Event{Kind: Failed, Index: 7, Errno: 13, Status: 256, UserCPU: time.Second, SystemCPU: 3 * time.Microsecond, MaxRSS: 1 << 20}
	got, err := ParseEvent(want.Marshal())
	require.NoError(t, err)
	require.Equal(t, want, got)

	_, err = ParseEvent(want.Marshal()[1:])
	require.ErrorContains(t, err, "event of 39 bytes")
	for _, k := range []Kind{0, NumKinds, 1 << 31} {
		_, err = ParseEvent(Event{Kind: k}.Marshal())
		require.ErrorContains(t, err, "unknown kind")
		require.Equal(t, "?", k.String())
	}
}

// loaded loads the program with descriptors that don't exist.
func loaded(t testing.TB, p *Program) *Machine {
	t.Helper()
	m := newMachine(t)
	require.NoError(t, m.Load(p.Image(), make([]int, p.Files())))
	return m
}

func newMachine(t testing.TB) *Machine {
	t.Helper()
	m, err := NewMachine()
	require.NoError(t, err)
	t.Cleanup(func() { unmap(t, m) })
	return m
}
