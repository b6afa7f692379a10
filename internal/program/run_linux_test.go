package program

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCommandsEnd(t *testing.T) {
	if !inChild(t) {
		return
	}
	tests := []struct {
		script string
		want   func(s unix.WaitStatus) bool
	}{
		{"exit 0", func(s unix.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 0 }},
		{"exit 7", func(s unix.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 7 }},
		{"kill -9 $$", func(s unix.WaitStatus) bool { return s.Signaled() && s.Signal() == unix.SIGKILL }},
		{"kill -15 $$", func(s unix.WaitStatus) bool { return s.Signaled() && s.Signal() == unix.SIGTERM }},
		{"sh -c 'kill -9 $$'; exit 5", func(s unix.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 5 }},
	}
	for _, test := range tests {
		b := NewBuilder()
		b.shell(test.script)
		p := start(t, 0, b)
		events := p.all()
		require.Len(t, events, 2, test.script)
		require.Equal(t, Started, events[0].Kind, test.script)
		require.Equal(t, Exited, events[1].Kind, test.script)
		require.True(t, test.want(unix.WaitStatus(events[1].Status)), "%s: %#x", test.script, events[1].Status)
		require.Equal(t, 0, p.wait().ExitStatus(), "PID 1's own end")
	}
}

// TestStartedComesAfterGo follows a run past the point where it waits for its host.
func TestStartedComesAfterGo(t *testing.T) {
	if !inChild(t) {
		return
	}
	marker := t.TempDir() + "/marker"
	b := NewBuilder()
	b.In(Command)
	b.Event(Ready)
	b.Wait(Report)
	b.shell(`: >"$1"; exit 3`, marker)
	p := start(t, 0, b)
	m, err := p.next()
	require.NoError(t, err)
	require.Equal(t, Ready, m.Kind)
	p.quiet()
	require.NoFileExists(t, marker)
	_, err = unix.Write(p.sock, []byte{1})
	require.NoError(t, err)
	require.Equal(t, []Event{{Kind: Started}, {Kind: Exited, Status: 3 << 8}}, p.all())
	require.FileExists(t, marker)
}

func TestUsageOfTheCommand(t *testing.T) {
	if !inChild(t) {
		return
	}
	b := NewBuilder()
	b.shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
	p := start(t, 0, b)
	for {
		m, err := p.next()
		require.NoError(t, err)
		if m.Kind != Exited {
			continue
		}
		require.Zero(t, m.Status)
		require.Positive(t, m.UserCPU+m.SystemCPU)
		require.Greater(t, m.MaxRSS, uint64(64<<10))
		require.Less(t, m.MaxRSS, uint64(1<<30))
		return
	}
}

func TestLargeArguments(t *testing.T) {
	if !inChild(t) {
		return
	}
	args := make([]string, 10)
	for i := range args {
		args[i] = strings.Repeat("x", 100<<10) // a single one may have 128 KiB: execve(2)
	}
	b := NewBuilder()
	b.shell(`[ $# = 10 ] && [ ${#10} = 102400 ]`, args...)
	require.Equal(t, []Event{{Kind: Started}, {Kind: Exited}}, start(t, 0, b).all())

	b = NewBuilder()
	b.shell("exit 0", strings.Repeat("x", 128<<10))
	require.Equal(t, []Event{{Kind: Failed, Index: 1, Errno: uint32(unix.E2BIG)}}, start(t, 0, b).all())
}

// pidNamespace returns the flags that make a clone PID 1 here.
func pidNamespace() uint64 {
	if os.Geteuid() == 0 {
		return unix.CLONE_NEWPID
	}
	return unix.CLONE_NEWPID | unix.CLONE_NEWUSER
}

// TestOrphans leaves an orphan and waits until it is reaped: kill(2) finds a zombie, but not a
// process that was waited for.
func TestOrphans(t *testing.T) {
	if !inChild(t) {
		return
	}
	b := NewBuilder()
	b.shell(`orphan=$(sh -c 'sleep 1 >/dev/null & echo $!')
		while kill -0 $orphan 2>/dev/null; do sleep 1; done
		[ $$ = 2 ] && exit 4`)
	p := start(t, pidNamespace(), b)
	require.Equal(t, []Event{{Kind: Started}, {Kind: Exited, Status: 4 << 8}}, p.all())
}

// TestAlone has the last event report whether any other process is left.
func TestAlone(t *testing.T) {
	if !inChild(t) {
		return
	}
	for script, alone := range map[string]bool{
		"exit 3":                 true,
		"sleep 1000000 & exit 3": false,
		// An orphan that has ended.
		"sh -c 'exit 0 &'; sleep 1; exit 3": true,
		"sh -c 'sleep 1000000 &'; exit 3":   false,
	} {
		b := NewBuilder()
		b.shell(script)
		p := start(t, pidNamespace(), b)
		for {
			m, err := p.next()
			require.NoError(t, err)
			require.False(t, m.Kind != Exited && m.Alone())
			if m.Kind == Exited {
				require.Equal(t, alone, m.Alone(), script)
				break
			}
		}
		p.end()
	}
}

// TestNothingOutlivesTheCommand has a background process that would keep the pipe open.
func TestNothingOutlivesTheCommand(t *testing.T) {
	if !inChild(t) {
		return
	}
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	b := NewBuilder()
	out := b.File("pipe")
	b.In(Command)
	b.Call("dup3", unix.SYS_DUP3, Use(out), Int(1), Int(0))
	b.shell(`sleep 1000000 & echo started`)
	p := start(t, pidNamespace(), b, write)
	require.NoError(t, write.Close())
	require.Equal(t, []Event{{Kind: Started}, {Kind: Exited}}, p.all())
	content := make([]byte, 64)
	n, err := read.Read(content)
	require.NoError(t, err)
	require.Equal(t, "started\n", string(content[:n]))
	n, _ = read.Read(content) // waits for the end of all processes that have the pipe
	require.Zero(t, n)
}

// TestRunsAreAlike repeats a run on one machine, as the fork server does.
func TestRunsAreAlike(t *testing.T) {
	if !inChild(t) {
		return
	}
	before := openFiles(t)
	for i := range 20 {
		b := NewBuilder()
		b.shell("exit " + []string{"0", "1"}[i%2])
		p := start(t, 0, b)
		require.Equal(t, []Event{{Kind: Started}, {Kind: Exited, Status: uint32(i%2) << 8}}, p.all())
		p.end()
	}
	require.Equal(t, before, openFiles(t))
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}
