//go:build linux

package run

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
)

// foreseen returns what a call of this thread that names a path will end with.
func foreseen(t *testing.T, r *refusals, p string) (o outcome) {
	notify(t, p, func(n seccomp.Notification) { o = r.foresee(n) })
	return o
}

// notify calls a function with a notification of a call of this thread that names a path.
func notify(t *testing.T, p string, f func(seccomp.Notification)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	name, err := unix.BytePtrFromString(p)
	require.NoError(t, err)
	defer runtime.KeepAlive(name)
	dir := int64(unix.AT_FDCWD)
	call := seccomp.Own("faccessat", uint64(dir), uint64(uintptr(unsafe.Pointer(name))), 0)
	f(seccomp.Notification{Thread: uint32(unix.Gettid()), Call: call})
}

func refusalsFor(t *testing.T) *refusals {
	conf := spec.Defaults()
	r, err := newRefusals(&conf)
	require.NoError(t, err)
	return r
}

// A daemon or server that does not answer keeps nobody waiting.
func TestLookAsksNoDaemon(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "/dev/fuse")
	dir := t.TempDir()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	require.NoError(t, err)
	defer fuse.Close()
	require.NoError(t, unix.Mount("sandbox-test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())))
	defer func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	there := make(chan bool)
	go func() { there <- isThere(dir) || isThere(dir+"/x") }()
	select {
	case found := <-there:
		require.False(t, found)
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for the daemon")
	}
}

// However long links make a path, no more is kept than what a path may be.
func TestLookAtLongPaths(t *testing.T) {
	dir := t.TempDir()
	rest := strings.Repeat("/x", 1900)
	for i := range 10 {
		require.NoError(t, os.Symlink(fmt.Sprint(i+1)+rest, filepath.Join(dir, fmt.Sprint(i))))
	}
	r := refusalsFor(t)
	require.Equal(t, outcome{filepath.Join(dir, "10", rest), unix.ENOENT}, foreseen(t, r, filepath.Join(dir, "9")))
	require.Empty(t, foreseen(t, r, filepath.Join(dir, "0")))
}

// Whether a look is taken, which a run may find out, does not depend on what has been reported, and
// thus not on what this machine has.
func TestLookWhateverIsReported(t *testing.T) {
	r := refusalsFor(t)
	r.reported = maxRefusals
	require.Equal(t, outcome{"/missing", unix.ENOENT}, foreseen(t, r, "/missing"))
}

// However much a run gives to look at, it keeps no CPU busy.
func TestLooksTakeTurns(t *testing.T) {
	r := refusalsFor(t)
	began := time.Now()
	var looks time.Duration
	for now := began; now.Sub(began) < 10*time.Second; {
		took := 2 * time.Millisecond
		looks += took
		now = now.Add(took + r.passed.next(now, took.Seconds()))
	}
	require.InDelta(t, quickLooks.Seconds()+10*lookShare, looks.Seconds(), 0.1)

	// And it is charged for each.
	r = refusalsFor(t)
	nothing, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer nothing.Close()
	raw, err := nothing.SyscallConn()
	require.NoError(t, err)
	notify(t, strings.Repeat("/tmp/..", 60), func(n seccomp.Notification) { r.decide(raw, n) })
	require.Less(t, r.passed.credit, r.passed.most-lookAtom.Seconds())
}
