package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
)

var errNoTerminal = errors.New("-t: the standard input or output is no terminal: leave the flag out")

// onTerminal runs the command on a terminal of its own, which this program's is connected to: raw
// meanwhile, so that ^C and ^Z go to the command.
func onTerminal(ctx context.Context, s *settings) (*sandbox.Result, error) {
	in, out := int(os.Stdin.Fd()), int(os.Stdout.Fd())
	size, err := unix.IoctlGetWinsize(out, unix.TIOCGWINSZ)
	if err != nil {
		return nil, errNoTerminal
	}
	was, err := unix.IoctlGetTermios(in, unix.TCGETS)
	if err != nil {
		return nil, errNoTerminal
	}
	opts := append([]sandbox.Option{sandbox.WithTerminal(size.Row, size.Col)}, s.opts...)
	if term := os.Getenv("TERM"); term != "" { // -env may say otherwise
		opts = append([]sandbox.Option{sandbox.WithEnv("TERM=" + term)}, opts...)
	}
	p, err := sandbox.New(opts...).Start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.IoctlSetTermios(in, unix.TCSETSW, was) }()
	raw := rawMode(*was)
	if err := unix.IoctlSetTermios(in, unix.TCSETSW, &raw); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	go func() {
		for range resized {
			if size, err := unix.IoctlGetWinsize(out, unix.TIOCGWINSZ); err == nil {
				_ = p.Resize(size.Row, size.Col)
			}
		}
	}()
	resized <- unix.SIGWINCH                               // it may have changed meanwhile
	go func() { _, _ = io.Copy(p.Terminal(), os.Stdin) }() // until this program ends
	_, _ = io.Copy(os.Stdout, p.Terminal())
	return p.Wait()
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
