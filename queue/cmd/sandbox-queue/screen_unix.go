//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// isScreen reports whether a file is a terminal.
func isScreen(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// screenSize returns how many rows and columns a terminal has.
func screenSize(f *os.File) (rows, columns int) {
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 && size.Col > 0 {
		return int(size.Row), int(size.Col)
	}
	return 24, 80
}
