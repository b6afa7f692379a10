package spec

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPoolClose undoes prepared runs before cgroups, once, and again what could not be undone.
func TestPoolClose(t *testing.T) {
	var p Pool
	var undone []string
	fails := true
	p.Made(Cgroups, 1, func() error {
		undone = append(undone, "cgroup")
		if fails {
			return errors.New("busy")
		}
		return nil
	})
	undo := func() error {
		undone = append(undone, "run")
		p.Gone(PreparedRuns, 2)
		p.Made(Cgroups, 1, func() error { panic("is known already") })
		return nil
	}
	p.Made(PreparedRuns, 2, undo)
	p.Made(PreparedRuns, 3, undo)
	p.Gone(PreparedRuns, 3)
	require.ErrorContains(t, p.Close(), "busy")
	require.Equal(t, []string{"run", "cgroup"}, undone)
	fails = false
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	require.Equal(t, []string{"run", "cgroup", "cgroup"}, undone)
}

// TestPoolCloseWaits has a Close return no earlier than one that is under way.
func TestPoolCloseWaits(t *testing.T) {
	var p Pool
	undoing, goOn, second := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.Made(PreparedRuns, 1, func() error {
		close(undoing)
		<-goOn
		return nil
	})
	go func() { _ = p.Close() }()
	<-undoing
	go func() {
		_ = p.Close()
		close(second)
	}()
	select {
	case <-second:
		t.Error("it did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	<-second
}
