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

// explaining is a wall that explains one error.
type explaining struct {
	wall.Wall
	err error
}

func (w explaining) Explain(err error) (Why, bool) {
	if errors.Is(err, w.err) {
		return IDsUnmapped, true
	}
	return Other, false
}

// TestBootErrors has what the wall explains, and what is known without it.
func TestBootErrors(t *testing.T) {
	known := errors.New("no such map")
	w := explaining{err: known}
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
		{started(known), IDsUnmapped, true},
		{fmt.Errorf("clone: %w", unix.ENOSYS), Other, true},
	} {
		got := newBootError(w, test.err)
		require.Equal(t, BootError{test.why, test.denied, test.err}, *got)
		require.Equal(t, test.err.Error(), got.Error())
		require.ErrorIs(t, got, test.err)
	}
}
