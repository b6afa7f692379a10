//go:build !unix

package main

import "os"

// isScreen reports whether a file is a terminal, or another device of characters.
func isScreen(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// screenSize returns how many rows and columns a terminal has.
func screenSize(*os.File) (rows, columns int) { return 24, 80 }
