//go:build linux

package guest

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// serveHere has this program be PID 1 of a command, in a pid namespace of this kernel, and returns
// its output and reports.
func serveHere(t *testing.T, c Conduct, env []string, argv ...string) (string, []Report) {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	args, environ := c.Line(argv, env)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env, cmd.ExtraFiles = environ, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	w.Close()
	require.NoError(t, err, string(out))
	var all []Report
	for from := Reports(r); from.More(); {
		var one Report
		require.NoError(t, from.Decode(&one))
		all = append(all, one)
	}
	return string(out), all
}

// The command has the ids and environment that were given, no capability, and not the reports. Its
// environment does nothing to PID 1, nor do its signals.
func TestServe(t *testing.T) {
	const script = `echo $A $B $(id -u) $(id -g) $(id -G) $PWD; awk '/^Cap/ { print $2 }' /proc/self/status | sort -u; readlink /proc/self/fd/3 || echo none; exit 7`
	env := []string{"A=a b", "B=", "PATH=" + os.Getenv("PATH"), variable + "=x"}
	said, all := serveHere(t, Conduct{Dir: "/tmp", UID: 1234, GID: 1235, Groups: []int{1236}}, env, "sh", "-c", script)
	require.Equal(t, []string{"a b 1234 1235 1235 1236 /tmp", "0000000000000000", "none"}, strings.Split(strings.TrimSpace(said), "\n"))
	require.Len(t, all, 2)
	require.Equal(t, Report{Started: true}, all[0])
	require.True(t, all[1].Ended)
	require.Equal(t, 7, all[1].Status.ExitStatus())

	said, all = serveHere(t, Conduct{Dir: "/"}, []string{"LD_PRELOAD=/none.so", "GODEBUG=inittrace=1"}, "/bin/sh", "-c",
		"kill -TERM 1; kill -HUP 1; kill -INT 1; (exit 3 &); kill -KILL $$")
	require.Equal(t, 1, strings.Count(said, "/none.so"), "the command's loader alone complains: %s", said)
	require.NotContains(t, said, "init internal", "the command's GODEBUG is not PID 1's")
	require.Equal(t, unix.SIGKILL, all[1].Status.Signal())
}

// Why a command could not be started is reported.
func TestServeFailures(t *testing.T) {
	for _, test := range []struct {
		c    Conduct
		argv string
		want Report
	}{
		{Conduct{Dir: "/"}, "/none", Report{Errno: unix.ENOENT}},
		{Conduct{Dir: "/"}, "none", Report{Errno: unix.ENOENT}},
		{Conduct{Dir: "/"}, "/etc/passwd", Report{Errno: unix.EACCES}},
		{Conduct{Dir: "/none"}, "/bin/true", Report{Dir: true, Errno: unix.ENOENT}},
	} {
		_, all := serveHere(t, test.c, []string{"PATH=/bin"}, test.argv)
		require.Equal(t, []Report{test.want}, all)
	}
}
