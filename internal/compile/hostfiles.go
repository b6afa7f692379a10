//go:build linux

package compile

import (
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
)

// HostFiles is what HostRootfs shows of the host's /etc and /var: copies of small files.
type HostFiles struct {
	*host.Files
	// Copy makes the root of a template in memory, and the files in it. A file with their
	// contents, one after the other, accompanies it.
	Copy *program.Program
	// Layer gives a scratch with the files, which writable roots have in place of the copies.
	Layer any
}

// NewHostFiles compiles the copying of files.
func NewHostFiles(found *host.Files, layer any) *HostFiles {
	f := &HostFiles{Files: found, Layer: layer}
	f.Copy = f.copyProgram()
	return f
}

func (f *HostFiles) copyProgram() *program.Program {
	b := program.NewBuilder()
	contents := b.File("contents of the files, one after the other")
	calls, data := 4, 0
	for _, e := range f.Entries {
		calls++
		if e.Mode.IsRegular() {
			calls += 2
		}
		data += len(e.Path) + len(e.Link) + 32
	}
	b.Grow(calls, data)
	b.Stage("files of the host's programs")
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	root := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", inPages(len(f.Entries), host.MaxTotal))
	b.AttachAt(root, program.CellStaging)
	at, offset := program.Use(root), int64(0)
	for _, e := range f.Entries {
		switch p := e.Path[1:]; {
		case e.Mode.IsDir():
			b.Mkdir(at, p, e.Mode.Perm())
		case e.Mode.IsRegular():
			b.CopyFile(at, p, contents, offset, len(e.Data), e.Mode)
			offset += int64(len(e.Data))
		default:
			b.Symlink(e.Link, at, p)
		}
	}
	p, err := b.Program()
	if err != nil { // package host bounds the files, and so the program
		panic(err)
	}
	return p
}
