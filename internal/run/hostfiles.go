//go:build linux

package run

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/scratch"
)

// What HostRootfs shows of the host's /etc and /var: copies of the small files that package host
// finds, made once for each template.

// hostFiles caches these files, and what was made of them.
type hostFiles struct {
	host.Cache

	mu    sync.Mutex
	last  *compile.HostFiles
	ahead bool // they are, or were, read ahead
}

// now returns the files, the same as before unless packages have changed.
func (h *hostFiles) now(m *compile.Machine) *compile.HostFiles {
	found := h.Get(m.Shown)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil || h.last.Files != found {
		h.last = compile.NewHostFiles(found, &filesLayer{files: found})
	}
	return h.last
}

// readAhead has the files read in the background while the cell of the first run boots, or of the
// first one after close.
func (h *hostFiles) readAhead(m func() *compile.Machine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ahead {
		h.ahead = true
		go h.now(m())
	}
}

// close gives up what was made of them. A later run makes it anew.
func (h *hostFiles) close() {
	h.mu.Lock()
	last := h.last
	h.last, h.ahead = nil, false
	h.mu.Unlock()
	if last != nil {
		last.Layer.(*filesLayer).close()
	}
}

// filesLayer has the files in a directory: a lower layer of roots that can be changed. It is made
// when the first such run needs it.
type filesLayer struct {
	files *host.Files

	mu   sync.Mutex
	made *scratch.Scratch
}

func (l *filesLayer) Get() (*scratch.Scratch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made = scratch.Usable(l.made); l.made != nil {
		return l.made, nil
	}
	s, err := scratch.New(8<<20 + int64(len(l.files.Entries))*64<<10)
	if err != nil {
		return nil, err
	}
	for _, e := range l.files.Entries {
		if err = putEntry(s.Root(), e); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	l.made = s
	return s, nil
}

func (l *filesLayer) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made != nil {
		_ = l.made.Close()
		l.made = nil
	}
}

func putEntry(root *os.Root, e host.Entry) (err error) {
	p := e.Path[1:]
	switch {
	case e.Mode&fs.ModeSymlink != 0:
		return root.Symlink(e.Link, p)
	case e.Mode.IsDir():
		err = root.Mkdir(p, 0o700)
	default:
		err = root.WriteFile(p, e.Data, 0o600)
	}
	if err == nil {
		err = root.Chmod(p, e.Mode.Perm()) // whatever the umask
	}
	return err
}
