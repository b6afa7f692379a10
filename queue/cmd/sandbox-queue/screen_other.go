//go:build !unix

package main

import "os"

// screenSize returns how many rows and columns a terminal has.
func screenSize(*os.File) (rows, columns int) { return 24, 80 }
