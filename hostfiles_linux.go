package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
)

// What HostRootfs shows of the host's /etc and /var: copies of the small files that package host
// finds, made once for each template.

// hostFiles is these files, the program that copies them, and the layer that roots which can be
// changed have in place of the copies.
type hostFiles struct {
	*host.Files
	copy  *program.Program
	layer *filesLayer
}

// cachedFiles is this process's.
var cachedFiles struct {
	host.Cache
	mu   sync.Mutex
	last *hostFiles
}

// hostFilesNow returns the same as before unless packages have changed.
func (m *machine) hostFilesNow() *hostFiles {
	found := cachedFiles.Get(m.Shown)
	cachedFiles.mu.Lock()
	defer cachedFiles.mu.Unlock()
	if last := cachedFiles.last; last == nil || last.Files != found {
		cachedFiles.last = newHostFiles(found)
	}
	return cachedFiles.last
}

// readAhead has the files read while the first run's cell boots.
var readAhead = sync.OnceFunc(func() { go thisMachine().hostFilesNow() })

func newHostFiles(found *host.Files) *hostFiles {
	f := &hostFiles{Files: found, layer: &filesLayer{files: found}}
	f.copy = f.copyProgram()
	return f
}

// closeHostFiles gives up what was made of them. A run that comes after makes it anew.
func closeHostFiles() {
	cachedFiles.mu.Lock()
	last := cachedFiles.last
	cachedFiles.last = nil
	cachedFiles.mu.Unlock()
	if last != nil {
		last.layer.close()
	}
}

// copyProgram makes the root of a template in memory, and in it the files.
func (f *hostFiles) copyProgram() *program.Program {
	b := program.NewBuilder()
	b.Stage("files of the host's programs")
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	root := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", inPages(len(f.Entries), 8*MiB))
	b.AttachAt(root, program.CellStaging)
	at := program.Use(root)
	for _, e := range f.Entries {
		switch p := e.Path[1:]; {
		case e.Mode.IsDir():
			b.Mkdir(at, p, e.Mode.Perm())
		case e.Mode.IsRegular():
			b.CreateFile(at, p, e.Data, e.Mode)
		default:
			b.Symlink(e.Link, at, p)
		}
	}
	p, err := b.Program()
	if err != nil { // package host bounds them, and so the program
		panic(err)
	}
	return p
}

// filesLayer is the files as a directory: a lower layer of roots that can be changed. It is made
// when the first such run needs it.
type filesLayer struct {
	files *host.Files

	mu   sync.Mutex
	made *Scratch
}

func (l *filesLayer) get() (*Scratch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made = usable(l.made); l.made != nil {
		return l.made, nil
	}
	s, err := NewScratch(8*MiB + int64(len(l.files.Entries))*64*KiB)
	if err != nil {
		return nil, err
	}
	for _, e := range l.files.Entries {
		if err = putEntry(s.root, e); err != nil {
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
