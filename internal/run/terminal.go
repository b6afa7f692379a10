//go:build linux

package run

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Terminal is the host's end of a command's terminal.
type Terminal struct{ f *os.File }

// newTerminal refuses a descriptor that is not a terminal's other end: the command's process may be
// led to another file by a run that has its /dev. A terminal is neither waited for nor opened.
func newTerminal(f *os.File) (*Terminal, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	isOther := false
	_ = raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		isOther = unix.Fstat(int(fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(5, 2)
	})
	if !isOther {
		return nil, errors.New("a descriptor that is no terminal's other end")
	}
	return &Terminal{f}, nil
}

// Terminal returns the command's terminal, or nil.
func (r *Run) Terminal() *Terminal { return r.terminal }

// Read reads what the command writes. io.EOF means that nobody has the terminal open any more.
func (t *Terminal) Read(b []byte) (int, error) {
	n, err := t.f.Read(b)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

func (t *Terminal) Write(b []byte) (int, error) { return t.f.Write(b) }

// SyscallConn makes it a syscall.Conn: another process may be given the descriptor.
func (t *Terminal) SyscallConn() (syscall.RawConn, error) { return t.f.SyscallConn() }

// Close hangs up: the command gets SIGHUP.
func (t *Terminal) Close() error { return t.f.Close() }

// Resize tells the command of another size.
func (t *Terminal) Resize(rows, cols uint16) error {
	raw, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("sandbox: resizing the terminal: %w", err)
	}
	return nil
}

// adoptTerminal keeps the terminal that came with an event.
func (r *clone) adoptTerminal(f *os.File) error {
	if r.command == nil || !r.spec.Command.Terminal.On {
		f.Close()
		return fmt.Errorf("unexpected event %v", program.Terminal)
	}
	t, err := newTerminal(f)
	if err != nil {
		f.Close()
		return err
	}
	r.terminal = t
	return nil
}
