package sandbox

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipeReader reads a pipe until all writers are gone or, after end, what it held then.
type pipeReader struct {
	f     *os.File
	ended bool
	left  int // of that
}

// end wakes up a Read that waits. Those that follow don't.
func (p *pipeReader) end() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) }

func (p *pipeReader) Read(b []byte) (int, error) {
	if !p.ended {
		n, err := p.f.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		p.ended = true
		p.call(func(fd int) (err error) { p.left, err = unix.IoctlGetInt(fd, unix.TIOCINQ); return err })
	}
	n := 0
	// A writer can open the pipe for reading and take what is left: the descriptor does not block.
	p.call(func(fd int) (err error) { n, err = unix.Read(fd, b[:min(len(b), p.left)]); return err })
	if n <= 0 {
		return 0, io.EOF
	}
	p.left -= n
	return n, nil
}

// call makes a system call that fails only if nothing is left to read.
func (p *pipeReader) call(f func(fd int) error) {
	if raw, err := p.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			for f(int(fd)) == unix.EINTR {
			}
		})
	}
}

// openNull spares the attempt to poll it that os.OpenFile makes.
func openNull(flag int) (*os.File, error) {
	fd, err := unix.Open(os.DevNull, flag|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	return os.NewFile(uintptr(fd), os.DevNull), nil
}
