//go:build !linux

package main

import "io"

// onKey does nothing here: a signal ends top.
func onKey(io.Reader, byte, func()) (restore func()) { return func() {} }
