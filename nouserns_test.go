//go:build linux

package sandbox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
)

// Runs without a user namespace, whose names contain NoUserNamespace: as root on any machine, also with
// user namespaces switched off, which TestNoUserNamespacesAtAll does in the guest.

var noUserNamespace = sandbox.WithoutUserNamespace()

// user is an option for an id that nobody has.
const hostID = 50123

func hostShell(script string, opts ...sandbox.Option) *sandbox.Sandbox {
	return shell(script, noUserNamespace, sandbox.WithUser(hostID, hostID+1)).With(opts...)
}

func TestNoUserNamespace(t *testing.T) {
	t.Parallel()
	need(t, "root")
	t.Run("identity", func(t *testing.T) {
		p := start(t, sandbox.New(sandbox.WithCommand("sleep", "1000"), noUserNamespace, sandbox.WithUser(hostID, hostID+1)))
		var st unix.Stat_t
		require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d", p.PID()), &st))
		require.EqualValues(t, hostID, st.Uid, "on the host too")
		require.EqualValues(t, hostID+1, st.Gid)
		mine, err := os.Readlink("/proc/self/ns/user")
		require.NoError(t, err)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", p.PID()))
		require.NoError(t, err)
		require.Equal(t, mine, its)
		for _, ns := range []string{"pid", "mnt", "net", "ipc", "uts", "cgroup"} {
			mine, _ := os.Readlink("/proc/self/ns/" + ns)
			its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), ns))
			require.NoError(t, err)
			require.NotEqual(t, mine, its)
		}
	})
	t.Run("user", func(t *testing.T) {
		require.Equal(t, "hello 50123 50124 50124 sandbox sandbox /home/sandbox wrote",
			output(t, hostShell("echo hello $(id -u) $(id -g) $(id -G) $(id -un) $(hostname) $(pwd) $(touch ~/x /tmp/x /dev/shm/x && echo wrote)")))
		require.Equal(t, "1000 1000", output(t, shell("echo $(id -u) $(id -G)", noUserNamespace)))
	})
	t.Run("privileges", func(t *testing.T) {
		none := "0000000000000000"
		for _, pid := range []string{"1", "self"} {
			require.Equal(t, strings.ReplaceAll("CapInh:M CapPrm:M CapEff:M CapBnd:M CapAmb:M NoNewPrivs:1", "M", none),
				output(t, hostShell("echo $(grep -E '^Cap|^NoNewPrivs' /proc/"+pid+"/status | tr -d '\\t')")), pid)
		}
		require.Equal(t, "Uid: 65534 65534 65534 65534 Gid: 65534 65534 65534 65534 Groups:",
			output(t, hostShell("echo $(grep -E '^[UG]id|^Groups' /proc/1/status)")), "PID 1")
		require.Equal(t, "2", output(t, hostShell("grep Seccomp: /proc/self/status | cut -f2")))
	})
}
