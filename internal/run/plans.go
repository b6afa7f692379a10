//go:build linux

package run

import (
	"sync"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// plans caches a description's plans, one per shape of cell, as long as what they show of the host
// stays the same.
type plans struct {
	mu     sync.Mutex
	all    map[compile.Shape]*compile.Plan
	files  *compile.HostFiles
	resolv string
}

// plan returns the plan for a shape on the machine as it is now, which it compiles once.
func (p *plans) plan(m *compile.Machine, c spec.Spec, sh compile.Shape) (*compile.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.Files != p.files || m.Resolv != p.resolv {
		p.all, p.files, p.resolv = nil, m.Files, m.Resolv
	}
	if have := p.all[sh]; have != nil {
		return have, nil
	}
	if c.Root.IfCan && !m.AtLeast(5, 11) {
		c.Root.Writable = 0
	}
	f, err := lookFor(&c.Root, host.HasOverlay() && m.AtLeast(5, 11))
	if err != nil {
		return nil, err
	}
	made, err := compile.New(&c, m, sh, f)
	if err != nil {
		return nil, err
	}
	if m.Starved {
		return made, nil // the next start compiles anew
	}
	if p.all == nil {
		p.all = map[compile.Shape]*compile.Plan{}
	}
	p.all[sh] = made
	return made, nil
}

// forget makes the next start compile anew.
func (p *plans) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = nil
}

// command caches the program of a command, and what is wrong with its seccomp profile.
type command struct {
	once sync.Once
	made *program.Program
	err  error

	filterOnce sync.Once
	filterErr  error
}

// checkFilter returns an error if the seccomp profile can't be compiled, which it tries once. Wrong
// capabilities are refused elsewhere.
func (m *command) checkFilter(s *spec.Security) error {
	m.filterOnce.Do(func() {
		if len(s.Check()) == 0 {
			_, m.filterErr = compile.Filter(s)
		}
	})
	return m.filterErr
}

func (m *command) program(e *Engine, c *spec.Spec) (*program.Program, error) {
	m.once.Do(func() { m.made, m.err = compile.Command(c, e.Machine()) })
	return m.made, m.err
}
