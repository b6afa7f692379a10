package function

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
)

func gainedPrivileges() bool { return forkserver.Privileged() }

func unsupportedHere() error { return nil }

func closeOnExec(fd int) { unix.CloseOnExec(fd) }

func growPipe(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}
