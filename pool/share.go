package pool

import (
	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// Share returns an option for a run that the pool does not start, such as the call of a function:
// the limits that the pool's runs share (Memory, CPUs) are then this run's too. It has no turn, and
// Stats does not count it. It must have ended before Close is called.
func (p *Pool) Share() sandbox.Option {
	return func(c *spec.Spec) {
		if p.shared.IsLimited() {
			c.Limits.Pool = p.shared
		}
	}
}

// Capacity is what a pool may use. 0 means that it is not limited.
type Capacity struct {
	Runs   int     // at a time
	Memory int64   // bytes, of all runs together
	CPUs   float64 // of all runs together
	// RunMemory and RunCPUs are what its sandbox gives a run that asks for nothing else.
	RunMemory int64
	RunCPUs   float64
}

// Capacity returns what the pool may use, as its options and those of its sandbox say.
func (p *Pool) Capacity() Capacity {
	c := Capacity{Runs: p.size, Memory: p.conf.memory, CPUs: p.conf.cpus}
	p.s.With(func(s *spec.Spec) { c.RunMemory, c.RunCPUs = s.Limits.Memory, s.Limits.CPUs })
	return c
}
