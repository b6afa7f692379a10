package sandbox

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/forkserver"
)

func gainedPrivileges() bool { return forkserver.Privileged() }

func unsupportedHere() error { return nil }

// ownLibraries is what this program is loaded with, by where runs have it. If it can't be told, programFile says why.
var ownLibraries = sync.OnceValue(func() map[string]string {
	files, _ := cell.OwnLibraries()
	return files
})

func closeOnExec(fd int) { unix.CloseOnExec(fd) }

func growPipe(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}
