//go:build !linux

package main

import (
	"errors"
	"fmt"

	"github.com/cellkit/sandbox/compose"
)

func unsupported() error {
	return fmt.Errorf("projects run on Linux alone: %w", errors.ErrUnsupported)
}

type holder struct{}

func listen(string) (*holder, error) { return nil, unsupported() }

func (*holder) serve(*compose.Running) {}
func (*holder) close()                 {}

type background struct{}

func inBackground() (*background, error) { return nil, unsupported() }

func (*background) Write([]byte) (int, error) { return 0, unsupported() }
func (*background) ready(error)               {}

func detach(*env, []string) error { return unsupported() }

func ps(*env, []string) (int, error)      { return 0, unsupported() }
func logs(*env, []string) (int, error)    { return 0, unsupported() }
func execute(*env, []string) (int, error) { return 0, unsupported() }
func down(*env, []string) (int, error)    { return 0, unsupported() }
