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
	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
)

// What HostRootfs shows of the host's /etc and /var: copies of the small files that package host
// finds, made once for each template.

// hostFiles caches these files, and what was made of them.
type hostFiles struct {
	host.Cache

	mu   sync.Mutex
	last *compile.HostFiles
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

// close gives up what was made of them. A later run makes it anew.
func (h *hostFiles) close() {
	h.mu.Lock()
	last := h.last
	h.last = nil
	h.mu.Unlock()
	if last != nil {
		last.Layer.(*filesLayer).close()
	}
}

// assembleAhead begins to read what such a root shows of the host's files, in the background while
// its cell boots. Once the returned function is called with the cell, a template's copies of them
// are made there, while the run is compiled. It must be called, with nil if there is no such cell.
func (e *Engine) assembleAhead(r *spec.Root) func(*cell.Cell) {
	if !r.ShowsHost() {
		return func(*cell.Cell) {}
	}
	copies := r.Writable == 0
	booted := make(chan *cell.Cell, 1)
	e.ahead.Go(func() {
		base := copying(e.HostFiles())
		if !copies {
			return // a scratch has them
		}
		files, err := base.Open()
		defer closeFiles(files)
		if c := <-booted; c != nil && c.GuestRuntime() == nil && err == nil {
			c.AssembleAhead(cell.Assembly{Program: base.Program, Open: func() ([]*os.File, error) { return files, nil }})
		}
	})
	return func(c *cell.Cell) { booted <- c }
}

// copying returns what copies the files to where a template is assembled.
func copying(f *compile.HostFiles) *cell.Assembly {
	return &cell.Assembly{Program: f.Copy, Open: func() ([]*os.File, error) {
		contents, err := joined(f.Entries)
		if err != nil {
			return nil, err
		}
		return []*os.File{contents}, nil
	}}
}

// joined returns a file in memory with the contents of the files, one after the other.
func joined(entries []host.Entry) (*os.File, error) {
	const name = "files of the host's programs"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	for _, e := range entries {
		if _, err := f.Write(e.Data); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
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
