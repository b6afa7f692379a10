//go:build !linux

package function

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

func gainedPrivileges() bool { return false }

func unsupportedHere() error {
	return fmt.Errorf("sandbox: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func closeOnExec(int) {}

func growPipe(*os.File) {}
