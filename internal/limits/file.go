//go:build linux

package limits

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a cgroup are read and written with bare system calls: os.ReadFile asks for the
// file's size and registers it with the poller, which doubles the cost of reading 20 bytes.

// readFile returns the content of a cgroup file. It uses buf if that is large enough.
func readFile(name string, buf []byte) ([]byte, error) {
	fd, err := open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readAll(fd, name, buf)
}

func readAll(fd int, name string, buf []byte) ([]byte, error) {
	data := buf[:0]
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := unix.Pread(fd, data[len(data):cap(data)], int64(len(data)))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			return data, nil
		}
		data = data[:len(data)+n]
	}
}

func writeFile(name, value string) error {
	fd, err := open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		// One write: the kernel takes each write as a command of its own.
		_, err = unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return &fs.PathError{Op: "write " + strconv.Quote(value) + " to", Path: name, Err: err}
	}
	return nil
}

// open waits a little for a descriptor if all are in use: a run must be thawed and its counters
// read even then.
func open(name string, flags int) (int, error) {
	for tries := 0; ; tries++ {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if (err == unix.EMFILE || err == unix.ENFILE) && tries < 100 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// readWords returns the words of a file, or none if it can't be read.
func readWords(name string) []string {
	data, err := readFile(name, nil)
	if err != nil {
		return nil
	}
	var words []string
	for w := range bytes.FieldsSeq(data) {
		words = append(words, string(w))
	}
	return words
}

// gone reports whether err means that a directory or process no longer exists: ENOENT at open,
// ENODEV if the cgroup was removed after the file was opened, ESRCH for a process.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH)
}

func exists(name string) bool { return unix.Access(name, unix.F_OK) == nil }

// mkdir makes one directory.
func mkdir(name string) error {
	if err := unix.Mkdir(name, 0o755); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// nearest returns the deepest directory on the way from mount down to p that exists.
func nearest(mount, p string) string {
	for {
		dir := path.Join(mount, p)
		if p == "/" || exists(dir) {
			return dir
		}
		p = path.Dir(p)
	}
}
