package main

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// onKey calls f when a key is pressed at a terminal, whose line discipline is set so that keys are
// read at once and not shown. restore sets it as it was, and returns when nothing reads keys any
// more. If in is no terminal, or this process is in its background, where reading would stop it,
// nothing happens.
func onKey(in io.Reader, key byte, f func()) (restore func()) {
	file, ok := in.(*os.File)
	if !ok {
		return func() {}
	}
	fd := int(file.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil && group != unix.Getpgrp() {
		return func() {}
	}
	now := *was
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	now.Cc[unix.VSUSP] = 0 // ^Z would leave the shell with this screen
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &now); err != nil {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if pressed(fd, key, end) {
			f()
		}
	}()
	return func() {
		close(end)
		<-ended
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, was) // fails if the terminal is gone
	}
}

// pressed waits until a key is pressed, and reports false if end is closed before, or the terminal
// is gone.
func pressed(fd int, key byte, end <-chan struct{}) bool {
	for b := make([]byte, 64); ; {
		select {
		case <-end:
			return false
		default:
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err == nil && n > 0 {
			n, err = unix.Read(fd, b)
			if err == nil && n == 0 {
				return false
			}
			if err == nil && bytes.IndexByte(b[:n], key) >= 0 {
				return true
			}
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return false
		}
	}
}
