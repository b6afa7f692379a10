//go:build linux

package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// At 4 MiB a second, 4 MiB that go past the page cache take about a second.
func TestIO(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "block I/O limits")
	dir, err := os.MkdirTemp("/var/tmp", "io")
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(dir)) }()
	write := sandbox.New(sandbox.WithCommand("dd", "if=/dev/zero", "of=/io/file", "bs=256k", "count=16", "oflag=direct"), sandbox.WithBind(dir, "/io"))

	limited := write.With(sandbox.WithIO(sandbox.IOLimit{Path: dir, WriteBytes: 4 * sandbox.MiB}))
	res, err := limited.Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Greater(t, res.Usage.Wall, 600*time.Millisecond)
	require.GreaterOrEqual(t, res.Usage.WriteBytes, uint64(4*sandbox.MiB))

	few := write.With(sandbox.WithIO(sandbox.IOLimit{Path: dir, WriteOps: 16}))
	res, err = few.Run(testkit.Deadline(t))
	require.NoError(t, err)
	require.Greater(t, res.Usage.Wall, 600*time.Millisecond)
}

// At 2 MiB or 32 operations of 64 KiB a second, 8 MiB that go past the page cache take 4 seconds.
func TestIODevice(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "limits for loop devices")
	slow := 5500 * time.Millisecond
	if testkit.InGuest {
		slow = 15 * time.Second // beside other tests, on an emulated processor
	}
	device := loopDevice(t)
	size := sandbox.WithCommand("dd", "if=/dev/zero", "bs=64k", "count=128")
	for name, limit := range map[string]sandbox.IOLimit{
		"write bytes": {WriteBytes: 2 * sandbox.MiB},
		"write ops":   {WriteOps: 32},
		"read bytes":  {ReadBytes: 2 * sandbox.MiB},
		"read ops":    {ReadOps: 32},
	} {
		limit.Path = device
		f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
		require.NoError(t, err)
		s := sandbox.New(size, sandbox.WithStdout(f))
		moved := func(u sandbox.Usage) uint64 { return u.WriteBytes }
		if limit.ReadBytes+limit.ReadOps > 0 {
			s = sandbox.New(sandbox.WithCommand("dd", "of=/dev/null", "bs=64k", "count=128"), sandbox.WithStdin(f))
			moved = func(u sandbox.Usage) uint64 { return u.ReadBytes }
		}
		res, err := s.With(sandbox.WithIO(limit)).Run(testkit.Deadline(t))
		require.NoError(t, err, name)
		require.NoError(t, f.Close())
		t.Logf("%s: %v", name, res.Usage.Wall)
		require.Greater(t, res.Usage.Wall, 2500*time.Millisecond, name)
		require.Less(t, res.Usage.Wall, slow, name)
		require.InDelta(t, 8*sandbox.MiB, moved(res.Usage), sandbox.MiB, name)
	}
}

// loopDevice is a block device of 8 MiB in memory.
func loopDevice(t *testing.T) string {
	t.Helper()
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, 8*sandbox.MiB))
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.NoError(t, err)
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		name := fmt.Sprintf("/dev/loop%d", n)
		device, err := os.OpenFile(name, os.O_RDWR, 0)
		require.NoError(t, err)
		if err = unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_FD, fd); err == unix.EBUSY { // another was quicker
			device.Close()
			continue
		}
		require.NoError(t, err)
		t.Cleanup(func() {
			require.NoError(t, unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0))
			device.Close()
		})
		return name
	}
}

func TestIORefused(t *testing.T) {
	t.Parallel()
	for path, why := range map[string]string{"/proc": "does not lie on a single block device", "/no/such/place": "no such file"} {
		_, err := runs.Shell("", sandbox.WithIO(sandbox.IOLimit{Path: path, ReadOps: 1})).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, "WithIO: "+path)
		require.ErrorContains(t, err, why)
	}
}
