package console

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var errNoTerminal = errors.New("-t: the standard input or output is no terminal: leave the flag out")

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Env says what kind of terminal this program's is.
func Env() []string {
	if kind := os.Getenv("TERM"); kind != "" {
		return []string{"TERM=" + kind}
	}
	return nil
}

// Console is this program's terminal.
type Console struct {
	in, out int
	was     *unix.Termios

	mu       sync.Mutex
	restored bool
}

// Open returns the terminal that is this program's standard input and output.
func Open() (*Console, error) {
	c := &Console{in: int(os.Stdin.Fd()), out: int(os.Stdout.Fd())}
	var err error
	if _, err = unix.IoctlGetWinsize(c.out, unix.TIOCGWINSZ); err == nil {
		c.was, err = unix.IoctlGetTermios(c.in, unix.TCGETS)
	}
	if err != nil {
		return nil, errNoTerminal
	}
	return c, nil
}

// Size returns how many rows and columns it has, 0 if that is not known.
func (c *Console) Size() (rows, cols uint16) {
	size, err := unix.IoctlGetWinsize(c.out, unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return size.Row, size.Col
}

// Connect connects it to the other end of a command's terminal, until nobody has that open any more
// or, if over is not nil, that hangs up and what is left has been read. It is raw meanwhile, so
// that ^C and ^Z go to the command, and is restored however this program ends.
func (c *Console) Connect(terminal Connection, over *os.File) error {
	other, err := takeDescriptor(terminal)
	if err != nil {
		return err
	}
	unguard, err := c.guard()
	if err != nil {
		return err
	}
	defer unguard()
	restore := c.restore
	beforeExit.Store(&restore)
	defer restore()
	dumps := make(chan os.Signal, 1)
	signal.Notify(dumps, unix.SIGQUIT, unix.SIGABRT) // Go's own end by these restores nothing
	go func() {
		s := <-dumps
		restore()
		signal.Reset(s)
		_ = unix.Kill(unix.Getpid(), s.(unix.Signal))
	}()
	defer signal.Stop(dumps)
	if err := c.makeRaw(); err != nil {
		return err
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH, unix.SIGCONT)
	defer signal.Stop(resized)
	go func() {
		for range resized {
			// A shell may have restored it while this program was stopped.
			_ = c.makeRaw()
			rows, cols := c.Size()
			_ = unix.IoctlSetWinsize(other, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		}
	}()
	resized <- unix.SIGWINCH // it may have changed meanwhile
	overFD := -1
	if over != nil {
		overFD = int(over.Fd())
	}
	go relay(other, c.in, -1, 0) // until this program ends
	relay(c.out, other, overFD, maxLeft)
	return nil
}

// ConnectUntil is Connect until ended returns, whose error it returns.
func (c *Console) ConnectUntil(terminal Connection, ended func() error) error {
	over, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer over.Close()
	result := make(chan error, 1)
	go func() {
		err := ended()
		end.Close()
		result <- err
	}()
	if err := c.Connect(terminal, over); err != nil {
		return err
	}
	return <-result
}

// Connection is the other end of a terminal.
type Connection interface {
	syscall.Conn
	io.Closer
}

// takeDescriptor closes c and returns another descriptor of it, which stays open until this program
// ends. The runtime's poller, whose thread each byte would wake, does not know that.
func takeDescriptor(c Connection) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(ctlErr, err); err == nil {
		err = c.Close()
	}
	return fd, err
}

// makeRaw waits for nothing, as restore waits for it.
func (c *Console) makeRaw() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.restored {
		return nil // this program is about to end
	}
	raw := rawMode(*c.was)
	return unix.IoctlSetTermios(c.in, unix.TCSETS, &raw)
}

// restore waits for nothing. That this program may be in the background by now must not stop it:
// tcsetattr(3), SIGTTOU.
func (c *Console) restore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restored = true
	signal.Ignore(unix.SIGTTOU)
	_ = unix.IoctlSetTermios(c.in, unix.TCSETS, c.was)
}

// rawMode is cfmakeraw of termios(3).
func rawMode(t unix.Termios) unix.Termios {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return t
}
