//go:build linux

package limits

import (
	"bytes"
	"io/fs"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// counterFiles reads the counters of a group. Opening a file takes several times as long as reading
// it, so the files can be kept open.
type counterFiles struct {
	mu      sync.RWMutex // held for writing while kept changes
	keeping bool
	kept    map[string]int
}

// keep keeps open the files that read reads, until it returns. Only the first call does something.
func (f *counterFiles) keep(read func()) {
	f.mu.Lock()
	if f.kept != nil {
		f.mu.Unlock()
		return
	}
	f.keeping, f.kept = true, map[string]int{}
	f.mu.Unlock()
	read()
	f.mu.Lock()
	f.keeping = false
	f.mu.Unlock()
}

func (f *counterFiles) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fd := range f.kept {
		unix.Close(fd)
	}
	f.kept = nil
}

func (f *counterFiles) read(name string, buf []byte) ([]byte, error) {
	f.mu.RLock()
	keeping := f.keeping
	if fd, ok := f.kept[name]; ok {
		defer f.mu.RUnlock()
		return readAll(fd, name, buf)
	}
	f.mu.RUnlock()
	if !keeping {
		return readFile(name, buf)
	}
	fd, err := open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if other, ok := f.kept[name]; ok { // another reader was quicker
		unix.Close(fd)
		fd = other
	}
	f.kept[name] = fd
	return readAll(fd, name, buf)
}

func (f *counterFiles) readUint(name string) (uint64, error) {
	var buf [64]byte
	data, err := f.read(name, buf[:])
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil {
		return 0, &fs.PathError{Op: "parse", Path: name, Err: err}
	}
	return n, nil
}
