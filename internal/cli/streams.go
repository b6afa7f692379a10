package cli

// The standard streams of a command that are regular files. A run's user has an id of its own.
// To open such a file again, as /dev/stdout or /dev/stdin, it needs the permissions of others. If
// the file lacks these, the run gets a pipe, which it may open.

import (
	"io"
	"os"
	"time"

	"github.com/cellkit/sandbox"
)

// streams returns the options for the standard streams: input, output and error. The caller calls
// done when the command has ended.
func streams(files [3]*os.File) (opts []sandbox.Option, done func(), err error) {
	in, done, err := input(files[0])
	if err != nil {
		return nil, nil, err
	}
	stdout, stderr := output(files[1]), output(files[2])
	if stderr != io.Writer(files[2]) && sameFile(files[1], files[2]) {
		stderr = stdout // one pipe, as there is one file: the output stays in order
	}
	return []sandbox.Option{sandbox.WithStdin(in), sandbox.WithStdout(stdout), sandbox.WithStderr(stderr)}, done, nil
}

// shut reports whether f is a regular file that lacks some of the permissions for others.
func shut(f *os.File, permissions os.FileMode) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular() && info.Mode()&permissions != permissions
}

func sameFile(a, b *os.File) bool {
	ia, err1 := a.Stat()
	ib, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(ia, ib)
}

// output returns f, or a writer to f that makes the library give the run a pipe.
func output(f *os.File) io.Writer {
	if shut(f, 0o022) {
		return &struct{ io.Writer }{f}
	}
	return f
}

// input returns f, or a pipe that f is copied to. When the run has ended, the offset of f is where
// the run has stopped reading, as if it had read f itself: in "while read name; do sandbox run ...;
// done <list" each iteration reads a line.
func input(f *os.File) (in *os.File, done func(), err error) {
	begin, err := f.Seek(0, io.SeekCurrent)
	if err != nil || !shut(f, 0o044) {
		return f, func() {}, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	copied := make(chan int64)
	go func() {
		n, _ := io.Copy(struct{ io.Writer }{w}, f)
		_ = w.Close() // loses no data
		copied <- n
	}()
	return r, func() {
		_ = w.SetWriteDeadline(time.Unix(1, 0))
		n := <-copied
		if left, err := unread(r); err == nil {
			_, _ = f.Seek(begin+n-int64(left), io.SeekStart)
		}
		_ = r.Close() // opened for reading only
	}, nil
}
