//go:build linux

package testkit

import (
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Stuck is a Writer and Reader whose calls return only when the test is over.
type Stuck struct {
	Begun chan struct{} // closed by the first call

	over  chan struct{}
	once  sync.Once
	calls atomic.Int32
}

// NewStuck also requires that a writer that was given up is not called again.
func NewStuck(t testing.TB) *Stuck {
	s := &Stuck{over: make(chan struct{}), Begun: make(chan struct{})}
	t.Cleanup(func() {
		close(s.over)
		time.Sleep(10 * time.Millisecond)
		require.LessOrEqual(t, s.calls.Load(), int32(1))
	})
	return s
}

func (s *Stuck) block() {
	s.calls.Add(1)
	s.once.Do(func() { close(s.Begun) })
	<-s.over
}

func (s *Stuck) Write(b []byte) (int, error) { s.block(); return len(b), nil }
func (s *Stuck) Read([]byte) (int, error)    { s.block(); return 0, io.EOF }
