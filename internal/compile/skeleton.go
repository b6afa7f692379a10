//go:build linux

package compile

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
)

// skeleton makes directories and files in a file system that nothing else touches yet.
type skeleton struct {
	b        *program.Builder
	at       program.Arg
	under    string          // the directory in it
	copied   *host.Files     // the files that are there already
	made     map[string]bool // the paths that were made; true for a directory
	below    string          // where the file system will be mounted, if not at /
	own      bool
	uid, gid int
}

func (s *skeleton) add(p string, isDir bool, make func(rel string)) {
	if _, ok := s.made[p]; ok {
		return
	}
	if _, ok := s.copied.Find(p); ok {
		return
	}
	s.mkdir(path.Dir(p))
	s.made[p] = isDir
	make(s.rel(p))
	if s.own {
		s.b.Chown(s.at, s.rel(p), s.uid, s.gid)
	}
}

func (s *skeleton) rel(p string) string {
	return path.Join(s.under, strings.TrimPrefix(p, s.below)[1:])
}

func (s *skeleton) mkdir(p string) {
	s.add(p, true, func(rel string) { s.b.Mkdir(s.at, rel, 0o755) })
}

func (s *skeleton) symlink(p, target string) {
	s.add(p, false, func(rel string) { s.b.Symlink(target, s.at, rel) })
}

func (s *skeleton) file(p, content string) {
	s.add(p, false, func(rel string) { s.b.CreateFile(s.at, rel, []byte(content), 0o644) })
}

// files makes many files, of which most have the same content as others: those are links to one. A
// path that ends in a slash is a directory's.
func (s *skeleton) files(list []host.SysFile) {
	first := map[string]string{}
	for _, f := range list {
		switch same := first[f.Content]; {
		case strings.HasSuffix(f.Path, "/"):
			s.mkdir(path.Clean(f.Path))
		case same != "":
			s.link(f.Path, same)
		default:
			s.file(f.Path, f.Content)
			first[f.Content] = f.Path
		}
	}
}

// link makes p another name of the file of.
func (s *skeleton) link(p, of string) {
	s.add(p, false, func(rel string) {
		s.b.Call("linkat", unix.SYS_LINKAT, s.at, s.b.Str(s.rel(of)), s.at, s.b.Str(rel), program.Int(0))
	})
}
