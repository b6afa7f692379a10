//go:build linux

package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/wall"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func init() {
	testkit.AddHelper("receiver", func(args []string) error { return receive(args[0]) })
}

// lower is by how much less priority who delivers has than the receiver.
const lower = 7

// deliver starts a receiver, has PID 1 be a shell with a script, and returns what that has written
// and the error of the delivery.
func deliver(t *testing.T, c *wall.Container, script string) (string, error) {
	l, err := Listen(filepath.Join(t.TempDir(), "run"))
	require.NoError(t, err)
	defer l.Close()
	receiver := testkit.HelperCommand(t.Context(), "receiver", l.Addr().String())
	receiver.Stderr = io.Discard
	require.NoError(t, receiver.Start())
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := niceness()
	require.NoError(t, err)
	require.NoError(t, unix.Setpriority(unix.PRIO_PROCESS, 0, before+lower))
	defer unix.Setpriority(unix.PRIO_PROCESS, 0, before)
	out, in, err := os.Pipe()
	require.NoError(t, err)
	c.Args, c.Stderr, c.Files = []string{"/bin/sh", "-c", script}, in, []*os.File{in}
	err = l.Deliver(c, time.Minute, nil)
	in.Close()
	said, readErr := io.ReadAll(out)
	require.NoError(t, readErr)
	out.Close()
	var exit *exec.ExitError
	if waitErr := receiver.Wait(); err == nil {
		require.NoError(t, waitErr)
	} else {
		require.ErrorAs(t, waitErr, &exit)
	}
	return string(said), err
}

// PID 1 has the descriptors, ids, namespaces, priority and environment that the cell says, and the
// receiver's rights are gone.
func TestDeliver(t *testing.T) {
	testkit.Need(t, "a whole machine's root")
	extents := []wall.Extent{{Inside: 0, Outside: 1 << 30, Size: 1 << 16}}
	said, err := deliver(t, &wall.Container{Env: []string{"A=b"}, UIDs: extents, GIDs: extents},
		`echo $$ $A $(id -u) $(id -g) $(nice); echo three >&3; cat /proc/self/uid_map; grep Uid /proc/$PPID/status 2>/dev/null || true`)
	require.NoError(t, err)
	nice, err := niceness()
	require.NoError(t, err)
	require.Equal(t, []string{fmt.Sprint("1 b 0 0 ", min(19, nice+lower)), "three", "0 1073741824 65536"}, lines(said))
}

func lines(text string) (list []string) {
	for line := range strings.Lines(text) {
		list = append(list, strings.Join(strings.Fields(line), " "))
	}
	return list
}

// The receiver reports what keeps PID 1 from starting, and ends.
func TestDeliverFailure(t *testing.T) {
	testkit.Need(t, "a whole machine's root")
	_, err := deliver(t, &wall.Container{UIDs: []wall.Extent{{Inside: 0, Outside: 1, Size: 0}}}, "true")
	require.ErrorContains(t, err, "starting PID 1 in the container")
	_, err = deliver(t, &wall.Container{MakeCgroup: func() ([]string, error) { return nil, errors.New("no room") }}, "true")
	require.ErrorContains(t, err, "no room")
}

// Nobody waits for a receiver that does not come, or is gone, and a receiver for nobody.
func TestGone(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "run"))
	require.NoError(t, err)
	at := l.Addr().(*net.UnixAddr)
	require.Error(t, l.Deliver(&wall.Container{}, time.Millisecond, nil))
	gone := make(chan struct{})
	close(gone)
	other, err := Listen(filepath.Join(t.TempDir(), "run"))
	require.NoError(t, err)
	require.ErrorContains(t, other.Deliver(&wall.Container{}, time.Minute, gone), "has ended before")

	conn, err := net.DialUnix("unixpacket", nil, at)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	require.Error(t, l.Deliver(&wall.Container{Stderr: null}, time.Minute, nil))

	asked := make(chan error)
	go func() { asked <- receive(at.Name) }()
	conn, err = l.AcceptUnix()
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.ErrorContains(t, <-asked, "asking what to start")
	l.Close()
	require.Error(t, receive(at.Name))
}

// A message that is no order starts nothing.
func TestNoOrder(t *testing.T) {
	for _, message := range []string{"{}", "x", `{"Args":["/bin/true"]}`, strings.Repeat(" ", mostOrder+1)} {
		l, err := Listen(filepath.Join(t.TempDir(), "run"))
		require.NoError(t, err)
		asked := make(chan error)
		go func() {
			conn, err := net.DialUnix("unixpacket", nil, l.Addr().(*net.UnixAddr))
			if err == nil {
				_, _, err = read(conn)
				conn.Close()
			}
			asked <- err
		}()
		conn, err := l.AcceptUnix()
		require.NoError(t, err)
		_, err = conn.Write([]byte(message))
		require.NoError(t, err)
		require.Error(t, <-asked, fmt.Sprintf("%.20s", message))
		conn.Close()
		l.Close()
	}
}
