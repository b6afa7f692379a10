//go:build linux

package run_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// Prepared runs end if none of them is used, and are prepared again when a start asks for one.
func TestRootlessIdleReserve(t *testing.T) {
	s := made(sandbox.WithCommand("true"), sandbox.WithPrepared(3))
	require.NoError(t, s.Prepare(testkit.Deadline(t)))
	waiting := s.Waiting()
	require.Len(t, waiting, 3)
	s.BeIdle()
	testkit.Eventually(t, "runs that wait end", func() bool {
		for _, pid := range waiting {
			if syscall.Kill(pid, 0) == nil {
				return false
			}
		}
		return true
	})
	require.NoError(t, s.Prepare(testkit.Deadline(t)), "it can be used again")
	require.Len(t, s.Waiting(), 3)
}
