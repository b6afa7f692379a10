//go:build linux

package probe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/spec"
)

// runtimes returns a feature for each of what can make cells: one is made, and a run in it.
func (p *prober) runtimes() (list []Feature) {
	for _, name := range spec.Walls() {
		f := Feature{Name: "CellRuntime(" + name + ")"}
		version, installed := "in this program", slices.Contains(spec.Runtimes(), name)
		if installed {
			version, f.Err = cell.RuntimeVersion(name)
		}
		if f.Err == nil {
			f.Err = p.tryIn(cell.Config{Runtime: name})
			switch {
			case f.Err == nil:
				f.Detail = version
			case installed && version != "":
				f.Err = fmt.Errorf("%s: %w", version, f.Err)
			}
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
