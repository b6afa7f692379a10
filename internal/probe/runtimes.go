//go:build linux

package probe

import (
	"errors"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/spec"
)

// runtimes returns a feature for each container runtime that can make cells: one is made, and a run
// in it.
func (p *prober) runtimes() (list []Feature) {
	for _, name := range spec.Runtimes() {
		f := Feature{Name: "CellRuntime(" + name + ")"}
		f.Detail, f.Err = cell.RuntimeVersion(name)
		if f.Err == nil {
			f.Err = p.tryIn(cell.Config{Runtime: name})
		}
		f.Remedy = hintOf(f.Err)
		var missing *cell.MissingError
		if f.Remedy == "" && errors.As(f.Err, &missing) {
			f.Remedy = missing.Remedy()
		}
		list = append(list, f)
	}
	return list
}

// tryIn makes a run in a cell of its own.
func (p *prober) tryIn(config cell.Config) error {
	c, err := p.engine.Boot(config)
	if err != nil {
		return err
	}
	err = p.try(func(s *spec.Spec) { s.Place.Cell = c })
	return errors.Join(err, p.engine.End(p.ctx, c))
}
