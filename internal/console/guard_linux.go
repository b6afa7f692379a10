package console

// This program may be killed while its terminal is raw. So a child of it, which no signal of the
// terminal reaches, waits for its end and restores the terminal then, if nobody has.

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// modes are those of a terminal: what it had, and what this program has set.
type modes struct{ Was, Raw unix.Termios }

// guard starts the child. The caller calls stop when the terminal has been restored.
func (c *Console) guard() (stop func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	child := &exec.Cmd{Path: "/proc/self/exe", Args: []string{os.Args[0], GuardName}, Dir: "/", Stdin: r, Stdout: os.Stdin}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	if err == nil {
		err = json.NewEncoder(w).Encode(modes{*c.was, rawMode(*c.was)})
	}
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("-t: what restores the terminal: %w", err)
	}
	return func() { w.Close(); _ = child.Wait() }, nil
}

// RestoreAfter is that child: its standard input ends with the other process, its standard output
// is the terminal.
func RestoreAfter() error {
	var m modes
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&m); err != nil {
		return errMisused
	}
	_, _ = in.Token()
	const terminal = 1
	// It is not this process's controlling terminal, so that it may be in the background:
	// tcsetattr(3). A shell may have restored it already, for itself.
	if now, err := unix.IoctlGetTermios(terminal, unix.TCGETS); err == nil &&
		now.Iflag == m.Raw.Iflag && now.Oflag == m.Raw.Oflag && now.Lflag == m.Raw.Lflag {
		_ = unix.IoctlSetTermios(terminal, unix.TCSETS, &m.Was)
	}
	return nil
}
