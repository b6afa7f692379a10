//go:build linux

package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

// fake is a test that another test inspects.
type fake struct {
	testing.TB
	end *time.Time

	mu       sync.Mutex
	log      []string
	skipped  string
	failed   string
	cleanups []func()
}

func (f *fake) Helper()            {}
func (f *fake) Cleanup(end func()) { f.cleanups = append(f.cleanups, end) }

func (f *fake) Deadline() (time.Time, bool) {
	if f.end == nil {
		return time.Time{}, false
	}
	return *f.end, true
}

func (f *fake) Logf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fake) Skipf(format string, args ...any)  { f.skipped = fmt.Sprintf(format, args...) }
func (f *fake) Fatalf(format string, args ...any) { f.failed = fmt.Sprintf(format, args...) }

func (f *fake) over() string {
	for _, end := range f.cleanups {
		end()
	}
	return strings.Join(f.log, "\n")
}

func sh(script string) sandbox.Option { return sandbox.WithCommand("sh", "-c", script) }

func TestRootlessNew(t *testing.T) {
	t.Setenv("SECRET", "1")
	t.Setenv("TZ", "Asia/Tokyo")
	out, err := New(t, sh(`echo $TZ $LANG $LC_ALL $HOSTNAME $SECRET; cat /etc/hostname; id -u; umask; date +%Z; cat /proc/net/dev | grep -c :`)).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "UTC C.UTF-8 C.UTF-8\nsandbox\n1000\n0022\nUTC\n1\n", string(out))
	out, err = New(t, sandbox.WithEnv("TZ=Asia/Tokyo"), sh("echo $TZ")).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "Asia/Tokyo\n", string(out), "options come last")
}

// The output of a failing run is in the log, that of another is not.
func TestRootlessLogsFailingRuns(t *testing.T) {
	Need(t)
	f := &fake{TB: t}
	s := New(f)
	out, err := s.With(sh("echo good")).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "good\n", string(out))
	_, err = s.With(sh("echo out; echo err >&2; exit 3")).Run(t.Context())
	require.Error(t, err)
	var exit *sandbox.ExitError
	out, err = s.With(sh("echo out2; echo err2 >&2; exit 4")).Output(t.Context())
	require.ErrorAs(t, err, &exit)
	require.Equal(t, "out2\nerr2\n", string(out)+string(exit.Stderr))
	out, err = s.With(sh("echo out3; echo err3 >&2; exit 5")).CombinedOutput(t.Context())
	require.Error(t, err)
	require.Equal(t, "out3\nerr3\n", string(out), "in order")
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	_, err = s.With(sh("echo file; exit 6"), sandbox.WithStdout(file), sandbox.WithStderr(file)).Run(t.Context())
	require.Error(t, err)
	require.NoError(t, file.Close())
	_, err = s.With(sh("yes | head -c 200000; echo last; exit 7")).Run(t.Context())
	require.Error(t, err)
	log := f.over()
	for _, want := range []string{"exit status 3; its output:\nout\nerr\n", "exit status 4; its output:\n", "out2\n", "err2\n", "exit status 5; its output:\nout3\nerr3\n", "exit status 7; its output:\n...\n", "y\nlast\n"} {
		require.Contains(t, log, want)
	}
	require.NotContains(t, log, "good")
	require.NotContains(t, log, "file")
	require.Less(t, len(log), 2*maxTail)
}

// Runs end with the test, and none begins after it.
func TestRootlessEndsRuns(t *testing.T) {
	Need(t)
	f := &fake{TB: t}
	s := New(f, sandbox.WithCommand("sleep", "1000"))
	var pids []int
	for range 3 {
		p, err := s.Start(context.Background())
		require.NoError(t, err)
		pids = append(pids, p.PID())
	}
	f.over()
	for _, pid := range pids {
		require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	}
	_, err := s.Run(context.Background())
	require.ErrorIs(t, err, errOver)
}

// A run ends before the test's deadline does.
func TestRootlessDeadline(t *testing.T) {
	Need(t)
	patience := 3 * time.Second
	if os.Getenv("VM_GUEST") == "1" { // emulated
		patience *= 4
	}
	end := time.Now().Add(patience)
	f := &fake{TB: t, end: &end}
	_, err := New(f, sh("echo so far; sleep 1000")).Run(context.Background())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.True(t, time.Now().Before(end))
	require.Contains(t, f.over(), "so far")
}

func TestNeed(t *testing.T) {
	real := thisMachine
	defer func() { thisMachine = real }()
	thisMachine = func() *sandbox.Report {
		return &sandbox.Report{Features: []sandbox.Feature{
			{Name: "runs", Required: true}, {Name: "WithMemory", Err: errors.New("no cgroups"), Remedy: "mount them"},
			{Name: "WithScratch", Err: &sandbox.SetupError{Stage: "root", Err: errors.New("too old"), Hint: "a newer kernel"}, Remedy: "a newer kernel"},
		}}
	}
	f := &fake{TB: t}
	Need(f, "runs")
	require.Empty(t, f.skipped+f.failed)
	Need(f, "WithMemory")
	require.Equal(t, "sandboxtest: WithMemory: no cgroups; remedy: mount them", f.skipped)
	Need(f, "WithScratch")
	require.Equal(t, "sandboxtest: WithScratch: sandbox: root: too old (a newer kernel)", f.skipped, "its remedy once")
	Need(f, "WithEverything")
	require.Contains(t, f.failed, `no feature "WithEverything"`)
	t.Setenv("SANDBOXTEST_REQUIRED", "1")
	Need(f, "WithMemory")
	require.Equal(t, "sandboxtest: WithMemory: no cgroups; remedy: mount them", f.failed)
}
