package sandbox

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/program"
)

// What HostRootfs has besides directories of the host: the places for them, a
// made-up /etc, mount points.

// addHostSkeleton makes what HostRootfs has besides the host's directories. With
// own, all of it belongs to the run's user. It returns what it makes, and whether that is a directory.
func (k *compiler) addHostSkeleton(b *program.Builder, root program.Slot, own bool) (made map[string]bool) {
	s := &skeleton{b: b, at: program.Use(root), made: map[string]bool{"/": true}}
	if own {
		s.uid, s.gid, s.own = k.c.namespace.uid, k.c.namespace.gid, true
	}
	for _, dir := range []string{"/etc", "/home", "/run", "/var"} {
		s.mkdir(dir)
	}
	s.symlink("/var/tmp", "/tmp")
	for _, p := range k.m.rootDirs {
		s.mkdir(p)
	}
	for _, p := range k.m.etc {
		// Some are directories, some are files; compile does not look.
		if path.Ext(p) == ".cache" || path.Ext(p) == ".cnf" || p == "/etc/localtime" {
			s.file(p, "")
		} else {
			s.mkdir(p)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(k.m.libraries)) {
		s.file(p, "")
	}
	for _, links := range []map[string]string{k.m.rootLinks, k.m.etcLinks} {
		for _, p := range slices.Sorted(maps.Keys(links)) {
			s.symlink(p, links[p])
		}
	}
	for _, f := range k.etcFiles() {
		s.file(f[0], f[1])
	}
	for _, p := range k.layout.mkdirs {
		if !k.inHostDir(p) {
			s.mkdir(p)
		}
	}
	for _, p := range k.layout.mkfiles {
		if !k.inHostDir(p) {
			s.file(p, "")
		}
	}
	for _, m := range k.layout.mounts {
		if m.kind == fileMount && m.on == nil && !k.inHostDir(m.dst) {
			s.mkdir(path.Dir(m.dst))
			if k.c.root.writable == nil {
				s.file(m.dst, "") // a mount point for the file
			}
		}
	}
	return s.made
}

// inHostDir tells whether a path lies in a directory that HostRootfs shows, directly or
// through one of the links at the top.
func (k *compiler) inHostDir(p string) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	if _, ok := k.m.rootLinks["/"+top]; ok {
		return true
	}
	return slices.Contains(k.m.rootDirs, "/"+top) || slices.ContainsFunc(k.m.etc, func(e string) bool {
		return p == e || strings.HasPrefix(p, e+"/")
	})
}

// skeleton makes directories and files in a file system that nothing else
// touches yet.
type skeleton struct {
	b        *program.Builder
	at       program.Arg
	made     map[string]bool // whether it is a directory
	below    string          // where it will be mounted, if not at /
	own      bool
	uid, gid int
}

func (s *skeleton) add(p string, isDir bool, make func(rel string)) {
	if _, ok := s.made[p]; ok {
		return
	}
	s.mkdir(path.Dir(p))
	s.made[p] = isDir
	make(s.rel(p))
	if s.own {
		s.b.Chown(s.at, s.rel(p), s.uid, s.gid)
	}
}

func (s *skeleton) rel(p string) string { return strings.TrimPrefix(p, s.below)[1:] }

func (s *skeleton) mkdir(p string) {
	s.add(p, true, func(rel string) { s.b.Mkdir(s.at, rel, 0o755) })
}

func (s *skeleton) symlink(p, target string) {
	s.add(p, false, func(rel string) { s.b.Symlink(target, s.at, rel) })
}

func (s *skeleton) file(p, content string) {
	s.add(p, false, func(rel string) { s.b.CreateFile(s.at, rel, []byte(content), 0o644) })
}

// etcFiles is the part of /etc that is the run's own.
func (k *compiler) etcFiles() [][2]string {
	n := &k.c.namespace
	passwd, group := "root:x:0:0:root:/:/bin/sh\n", "root:x:0:\n"
	if n.uid != 0 {
		passwd += fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", userName, n.uid, n.gid, homeDir)
	}
	if n.gid != 0 {
		group += fmt.Sprintf("%s:x:%d:\n", userName, n.gid)
	}
	resolv := "# no network\n"
	if n.network == NetworkHost {
		resolv = k.m.resolv
	}
	return [][2]string{
		{"/etc/passwd", passwd + "nobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"/etc/group", group + "nogroup:x:65534:\n"},
		{"/etc/hosts", "127.0.0.1 localhost " + n.hostname + "\n::1 localhost\n"},
		{"/etc/hostname", n.hostname + "\n"},
		{"/etc/resolv.conf", resolv},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"},
	}
}
