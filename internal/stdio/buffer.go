package stdio

import (
	"fmt"
	"io"
	"slices"
	"sync"
)

// Buffer keeps what is written to it. A copy that the delay has cut off may still be writing when
// it is read.
type Buffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	return len(p), nil
}

// Bytes returns what was written so far; later writes do not change it.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clip(b.b)
}

// Locked returns a writer that passes on what several goroutines write, one call after the other.
func Locked(w io.Writer) io.Writer { return &locked{w: w} }

type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// PrefixSuffix keeps the first and the last N bytes of what is written to it, as Buffer does.
type PrefixSuffix struct {
	N              int
	mu             sync.Mutex
	prefix, suffix []byte
	skipped        int64
}

func (p *PrefixSuffix) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := len(b)
	if room := p.N - len(p.prefix); room > 0 {
		k := min(room, len(b))
		p.prefix = append(p.prefix, b[:k]...)
		b = b[k:]
	}
	p.suffix = append(p.suffix, b...)
	if over := len(p.suffix) - p.N; over > 0 {
		p.skipped += int64(over)
		p.suffix = append(p.suffix[:0], p.suffix[over:]...)
	}
	return total, nil
}

// Bytes returns what is kept, and between both ends how much is not.
func (p *PrefixSuffix) Bytes() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.skipped == 0 {
		return slices.Concat(p.prefix, p.suffix)
	}
	return slices.Concat(p.prefix, fmt.Appendf(nil, "\n... omitting %d bytes ...\n", p.skipped), p.suffix)
}
