package service

import (
	"bytes"
	"context"
	"iter"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Line is a line of a service's output, without its end. It is as the service wrote it, so what
// shows it on a terminal should use its String method.
type Line struct {
	Time   time.Time
	Stderr bool
	Text   string // up to 64 KiB: a longer line is several
	// Missed is how many lines before it were given up before they could be returned.
	Missed int
	// Replica is the number, from 1, of the replica that wrote it; 0 without Scale.
	Replica int
}

// String returns the text with U+FFFD in place of control characters and bytes that are no UTF-8.
func (l Line) String() string { return printable(strings.TrimSuffix(l.Text, "\r")) }

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// shown returns what an error's text shows of something that a service has written.
func shown(s string) string {
	runes := []rune(printable(s))
	return string(runes[:min(len(runes), maxShown)])
}

const (
	maxLine  = 64 << 10
	lineCost = 64 // bytes that a line takes besides its text
)

// lines keeps the last lines of an instance and of all its replicas, through their restarts. Where
// a replica is asked for, 0 is for all.
type lines struct {
	mu    sync.Mutex
	kept  []Line
	stale int // how many at the beginning of kept were given up
	first int // how many were given up in all
	size  int
	limit int
	ended map[int]bool  // which replicas write nothing any more
	more  chan struct{} // closed, and replaced, when there is news
	await []*pattern
}

// pattern is a regular expression that a line of a replica's present run is to match.
type pattern struct {
	replica int
	re      *regexp.Regexp
	seen    bool
}

func newLog(limit int) *lines {
	return &lines{limit: limit, ended: map[int]bool{}, more: make(chan struct{})}
}

// add keeps a line. l.mu must be held.
func (l *lines) add(line Line) {
	for _, p := range l.await {
		p.seen = p.seen || p.replica == line.Replica && p.re.MatchString(line.Text)
	}
	l.kept, l.size = append(l.kept, line), l.size+len(line.Text)+lineCost
	for ; l.stale < len(l.kept)-1 && l.size > l.limit; l.stale++ {
		l.size -= len(l.kept[l.stale].Text) + lineCost
		l.kept[l.stale] = Line{}
		l.first++
	}
	// Moved within their array, and when as many were given up, so that a flood of short lines
	// allocates nothing, and moves each once.
	if l.stale > len(l.kept)/2 {
		n := copy(l.kept, l.kept[l.stale:])
		clear(l.kept[n:])
		l.kept, l.stale = l.kept[:n], 0
	}
}

// present returns the lines that are kept. l.mu must be held.
func (l *lines) present() []Line { return l.kept[l.stale:] }

// news wakes those who follow. l.mu must be held.
func (l *lines) news() {
	close(l.more)
	l.more = make(chan struct{})
}

// close says that nothing comes any more.
func (l *lines) close(replica int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended[replica] = true
	l.news()
}

// look has the lines of a new run matched with the patterns of checks.
func (l *lines) look(replica int, checks []Check) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.await = slices.DeleteFunc(l.await, func(p *pattern) bool { return p.replica == replica })
	for _, c := range checks {
		if c.re != nil {
			l.await = append(l.await, &pattern{replica: replica, re: c.re})
		}
	}
}

// saw reports whether a line of the present run has matched.
func (l *lines) saw(replica int, re *regexp.Regexp) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.await {
		if p.replica == replica && p.re == re {
			return p.seen
		}
	}
	return false
}

// next returns a channel that is closed with the next news.
func (l *lines) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.more
}

// since returns the lines from number n on, the number of the one after them, and a channel that is
// closed when there is more news.
func (l *lines) since(n int) (lines []Line, next int, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	skip := max(0, n-l.first)
	kept := l.present()
	lines = append(lines, kept[min(skip, len(kept)):]...)
	if len(lines) > 0 {
		lines[0].Missed = max(0, l.first-n)
	}
	return lines, l.first + len(kept), l.more
}

// hasEnded reports whether a replica writes nothing any more.
func (l *lines) hasEnded(replica int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended[replica]
}

// last returns the last n lines of a replica.
func (l *lines) last(replica, n int) (list []Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.present()
	for i := len(kept) - 1; i >= 0 && len(list) < n; i-- {
		if replica == 0 || kept[i].Replica == replica {
			list = append(list, kept[i])
		}
	}
	slices.Reverse(list)
	return list
}

// follow yields what is kept of a replica's lines, and what comes, until ctx or the replica ends.
func (l *lines) follow(ctx context.Context, replica int) iter.Seq[Line] {
	return func(yield func(Line) bool) {
		for n, missed := 0, 0; ; {
			ended := l.hasEnded(replica) // before its last lines are read
			lines, next, more := l.since(n)
			for _, line := range lines {
				missed += line.Missed
				if replica != 0 && line.Replica != replica {
					continue
				}
				line.Missed, missed = missed, 0
				if ctx.Err() != nil || !yield(line) {
					return
				}
			}
			if n = next; ended {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}

// stream is one of the output streams of a run.
type stream struct {
	to      *lines
	replica int
	stderr  bool
	part    []byte // of a line
}

// Write is called by one goroutine.
func (s *stream) Write(b []byte) (int, error) {
	now := time.Now()
	s.to.mu.Lock()
	defer s.to.mu.Unlock()
	for rest := b; len(rest) > 0; {
		n, end := bytes.IndexByte(rest, '\n'), 1
		if n < 0 {
			n, end = len(rest), 0
		}
		if room := maxLine - len(s.part); n > room {
			n, end = room, 0
		}
		s.part = append(s.part, rest[:n]...)
		if end == 1 || len(s.part) == maxLine {
			s.flush(now)
		}
		rest = rest[n+end:]
	}
	s.to.news()
	return len(b), nil
}

func (s *stream) flush(now time.Time) {
	s.to.add(Line{Time: now, Stderr: s.stderr, Text: string(s.part), Replica: s.replica})
	s.part = s.part[:0]
}

// end makes a line of what has no end of one.
func (s *stream) end() {
	s.to.mu.Lock()
	defer s.to.mu.Unlock()
	if len(s.part) > 0 {
		s.flush(time.Now())
		s.to.news()
	}
}
