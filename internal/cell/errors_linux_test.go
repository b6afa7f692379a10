package cell

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/wall"
)

// TestBootErrors has what the wall explains, and what is known without it.
func TestBootErrors(t *testing.T) {
	w := wall.Libcontainer()
	started := func(err error) error {
		return fmt.Errorf("booting the cell: unable to start container process: %w", err)
	}
	for _, test := range []struct {
		err    error
		why    Why
		denied bool
	}{
		{errors.New("no space left on device"), Other, false},
		{started(os.NewSyscallError("waitid", unix.ECHILD)), ChildTaken, false},
		{&os.PathError{Op: "open", Path: "/proc/self/exe", Err: unix.EACCES}, ProgramUnreadable, true},
		{&os.PathError{Op: "open", Path: "/lib/libc.so.6", Err: unix.EACCES}, Other, true},
		{started(errors.New("EOF; runc init error(s): nsexec-1[77]: failed to unshare user namespace: Operation not permitted")), Other, true},
		{started(errors.New("EOF; runc init error(s): nsexec-0[76]: failed to use newuid map on 77")), IDsUnmapped, false},
		{started(errors.New("error during container init: can't apply capabilities: operation not permitted")), CapabilitiesLacking, true},
		{started(errors.New(`error during container init: error mounting "proc" to rootfs at "/proc": operation not permitted`)), ProcUnmounted, true},
		{fmt.Errorf("clone: %w", unix.ENOSYS), Other, true},
	} {
		got := newBootError(w, test.err)
		require.Equal(t, BootError{test.why, test.denied, test.err}, *got)
		require.Equal(t, test.err.Error(), got.Error())
		require.ErrorIs(t, got, test.err)
	}
}
