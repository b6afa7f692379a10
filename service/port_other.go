//go:build !linux

package service

import (
	"errors"
	"io"
)

func reserve() (string, io.Closer, error) { return "", nil, errors.ErrUnsupported }

func listens(int, ...int) error { return errors.ErrUnsupported }
