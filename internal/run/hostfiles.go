//go:build linux

package run

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
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
// first one after close, and made ready for copying if that run's root is to have copies.
func (h *hostFiles) readAhead(m func() *compile.Machine, r *spec.Root) {
	if !r.ShowsHost() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ahead {
		return
	}
	h.ahead = true
	go func() {
		found := h.now(m())
		if !copiesFiles(r) {
			return
		}
		layer := found.Layer.(*filesLayer)
		if contents, err := layer.open(); err == nil {
			contents.Close()
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.ahead && h.last == found { // close was faster
			h.last = nil
			layer.close()
		}
	}()
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

// copiesFiles reports whether the root's template has the copies.
func copiesFiles(r *spec.Root) bool { return r.ShowsHost() && r.Writable == 0 }

// copying returns what copies the files to where a template is assembled.
func copying(f *compile.HostFiles) *cell.Assembly {
	return &cell.Assembly{Program: f.Copy, Open: func() ([]*os.File, error) {
		contents, err := f.Layer.(*filesLayer).open()
		if err != nil {
			return nil, err
		}
		return []*os.File{contents}, nil
	}}
}

// filesLayer has the files in other forms, each made when the first run needs it: in a directory,
// as a lower layer of roots that can be changed, and their contents one after the other in memory,
// for copying.
type filesLayer struct {
	files *host.Files

	mu       sync.Mutex
	made     *scratch.Scratch
	contents *os.File
	closed   bool // runs that began before may still ask for the contents, which are not kept
}

// open returns the contents, which the caller closes.
func (l *filesLayer) open() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.contents == nil {
		fd, err := unix.MemfdCreate("files of the host's programs", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, os.NewSyscallError("memfd_create", err)
		}
		f := os.NewFile(uintptr(fd), "files of the host's programs")
		for _, e := range l.files.Entries {
			if _, err := f.Write(e.Data); err != nil {
				f.Close()
				return nil, err
			}
		}
		if l.closed {
			return f, nil
		}
		l.contents = f
	}
	return forkserver.Dup(l.contents)
}

func (l *filesLayer) Get() (*scratch.Scratch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made = scratch.Usable(l.made); l.made != nil {
		return l.made, nil
	}
	s, err := scratch.New(host.MaxTotal + int64(len(l.files.Entries))*64<<10)
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
	if l.closed = true; l.contents != nil {
		l.contents.Close()
		l.contents = nil
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
