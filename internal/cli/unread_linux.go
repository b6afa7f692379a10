package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// unread returns how many bytes are in a pipe: pipe(7).
func unread(r *os.File) (int, error) { return unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ) }
