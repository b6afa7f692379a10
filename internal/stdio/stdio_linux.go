package stdio

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// PipeReader reads a pipe until all writers are gone or, after End, what it held then.
type PipeReader struct {
	fd    int      // before Begin
	f     *os.File // nil before Begin
	ended bool
	left  int // of that
}

// NewPipeReader returns a reader of the pipe, which os.Pipe has opened.
func NewPipeReader(pipe *os.File) *PipeReader { return &PipeReader{f: pipe} }

// openPipe returns a pipe. The runtime does not wait for what is written to it before Begin.
func openPipe() (*PipeReader, *os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return &PipeReader{fd: fds[0]}, os.NewFile(uintptr(fds[1]), "|1"), nil
}

// Begin comes before the first Read of what openPipe returned.
func (p *PipeReader) Begin() {
	_ = unix.SetNonblock(p.fd, true) // so that it can be polled
	p.f = os.NewFile(uintptr(p.fd), "|0")
}

// Holds reports, before Begin, whether there is something to read.
func (p *PipeReader) Holds() bool {
	n, err := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
	return n > 0 || err != nil
}

// Close closes the pipe. A Read that waits returns.
func (p *PipeReader) Close() error {
	if p.f != nil {
		return p.f.Close()
	}
	fd := p.fd
	if p.fd = -1; fd < 0 {
		return os.ErrClosed
	}
	return unix.Close(fd)
}

// End wakes up a Read that waits. Those that follow don't.
func (p *PipeReader) End() {
	if p.f != nil {
		_ = p.f.SetReadDeadline(time.Unix(1, 0))
	}
}

func (p *PipeReader) Read(b []byte) (int, error) {
	if !p.ended {
		n, err := p.f.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		p.ended = true
		p.call(func(fd int) (err error) { p.left, err = unix.IoctlGetInt(fd, unix.TIOCINQ); return err })
	}
	n := 0
	// A writer can open the pipe for reading and take what is left: the descriptor does not
	// block.
	p.call(func(fd int) (err error) { n, err = unix.Read(fd, b[:min(len(b), p.left)]); return err })
	if n <= 0 {
		return 0, io.EOF
	}
	p.left -= n
	return n, nil
}

// call makes a system call that fails only if nothing is left to read.
func (p *PipeReader) call(f func(fd int) error) {
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

// letReopen lets the run open a pipe again, through /dev/stdout or /proc/self/fd, whatever its ids
// are: for what the descriptor allows, reading or writing. An anonymous pipe has no name but the
// link in /proc of a process that has it, so others than those who may look into such a process
// gain nothing. A named pipe has the permissions that its owner gave it. What this process may not
// change stays as it is.
func letReopen(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		var fs unix.Statfs_t
		var st unix.Stat_t
		if unix.Fstatfs(int(fd), &fs) != nil || fs.Type != unix.PIPEFS_MAGIC || unix.Fstat(int(fd), &st) != nil {
			return
		}
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil {
			return
		}
		others := map[int]uint32{unix.O_RDONLY: 0o044, unix.O_WRONLY: 0o022, unix.O_RDWR: 0o066}[flags&unix.O_ACCMODE]
		if mode := st.Mode & 0o777; mode|others != mode {
			_ = unix.Fchmod(int(fd), mode|others)
		}
	})
}
