package cell

import (
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// own is this program's own file, to be executed in runs, once somebody has asked for it.
var own struct {
	mu sync.Mutex
	*binary
}

// OwnFile opens this program's own file for runs to execute. Nobody can write to what it opens.
func OwnFile() (*os.File, error) {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.binary == nil {
		b, err := ownBinary()
		if err != nil {
			return nil, err
		}
		own.binary = b
	}
	fd, err := unix.FcntlInt(own.exe.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), own.exe.Name()), nil
}

// CloseOwn closes what OwnFile keeps open.
func CloseOwn() {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.binary != nil {
		own.close()
		own.binary = nil
	}
}

// OwnLibraries is the files of the host that this program is loaded with; none if it is static.
func OwnLibraries() ([]string, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	loader, err := interpreter(exe)
	if err != nil || loader == "" {
		return nil, err
	}
	libs, err := mappedLibraries()
	if !slices.Contains(libs, loader) {
		libs = append(libs, loader)
	}
	return slices.DeleteFunc(libs, func(p string) bool { return strings.HasPrefix(p, "/dev/") || strings.HasPrefix(p, "/proc/") }), err
}
