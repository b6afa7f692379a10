package cli

// -wall: what makes the cell. A cell of the caller's takes what some options of
// a run say of their cell from options of its own.

import (
	"context"
	"errors"
	"fmt"

	"github.com/cellkit/sandbox"
)

// wall names what makes the cell. "nspawn" is short for one of them.
func wall(s *settings, value string) error {
	if value == "" {
		return errors.New(`"" is empty: give a name, or leave the flag out`)
	}
	if value == "nspawn" {
		value = "systemd-nspawn"
	}
	s.wall = value
	return nil
}

func cgroupParent(s *settings, value string) error {
	s.cell = append(s.cell, sandbox.CellCgroupParent(value))
	return text(sandbox.WithCgroupParent)(s, value)
}

func noUserNamespace(s *settings) {
	s.cell = append(s.cell, sandbox.CellWithoutUserNamespace())
	s.add(sandbox.WithoutUserNamespace())
}

// open opens the image and makes the cell that the flags ask for.
func (s *settings) open(ctx context.Context) (done func(), err error) {
	closeImage, err := s.openImage(ctx)
	if err != nil || s.wall == "" {
		return closeImage, err
	}
	c, err := sandbox.NewCell(append(s.cell, sandbox.CellRuntime(s.wall))...)
	if err != nil {
		closeImage()
		return nil, flagNames(err)
	}
	s.add(sandbox.WithCell(c))
	return func() {
		if err := c.Close(); err != nil {
			complain(fmt.Errorf("cleaning up: %w", err))
		}
		closeImage()
	}, nil
}
