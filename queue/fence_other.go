//go:build !linux

package queue

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// On systems other than Linux tasks can be submitted, and no worker runs.
type fence struct{}

func clockNow() time.Duration { return 0 }

func newFence(bool) (*fence, error) {
	return nil, fmt.Errorf("%s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (f *fence) hold(string, time.Duration) error { return errors.ErrUnsupported }
func (f *fence) release(string)                   {}
func (f *fence) close()                           {}
