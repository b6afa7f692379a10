package stdio

import (
	"io"
	"sync"
)

// outputLimit counts the bytes of both outputs.
type outputLimit struct {
	mu       sync.Mutex
	left     int64
	exceeded func()
}

// take returns how many of n bytes may pass.
func (l *outputLimit) take(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int64(n) > l.left {
		if l.exceeded != nil {
			l.exceeded()
			l.exceeded = nil
		}
		n = int(l.left)
	}
	l.left -= int64(n)
	return n
}

// limitedWriter passes on what the limit lets through and swallows the rest.
type limitedWriter struct {
	w     io.Writer
	limit *outputLimit
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if n := l.limit.take(len(p)); n > 0 {
		if _, err := l.w.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// limitedReader passes on what the limit lets through and reads on to the end for the rest.
type limitedReader struct {
	io.ReadCloser
	limit *outputLimit
}

func (l *limitedReader) Read(p []byte) (int, error) {
	for {
		n, err := l.ReadCloser.Read(p)
		if n = l.limit.take(n); n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}
