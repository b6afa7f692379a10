//go:build linux

package compile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// What HostRootfs has besides directories of the host: the places for them, a made-up /etc, mount
// points.

// addHostSkeleton makes, below a directory, what HostRootfs has besides directories of the host and
// copies of its files. With own, all of it belongs to the run's user, and the copies are elsewhere.
// It returns the paths that it makes; the value is true for a directory.
func (k *compiler) addHostSkeleton(b *program.Builder, at program.Arg, under string, own bool) (made map[string]bool) {
	s := &skeleton{b: b, at: at, under: under, made: map[string]bool{"/": true}}
	if own {
		s.uid, s.gid, s.own = k.c.Namespaces.UID, k.c.Namespaces.GID, true
	} else if k.m.Files != nil {
		s.copied = k.m.Files.Files
	}
	for _, dir := range []string{"/etc", "/home", "/run", "/var"} {
		s.mkdir(dir)
	}
	for _, l := range k.c.Root.Links() {
		s.symlink(l.Path, l.Target)
	}
	for _, p := range slices.Concat(k.m.RootDirs, k.hostDirs()) {
		s.mkdir(p)
	}
	for _, p := range slices.Sorted(maps.Keys(k.m.Libraries)) {
		s.file(p, "")
	}
	for _, p := range slices.Sorted(maps.Keys(k.m.RootLinks)) {
		s.symlink(p, k.m.RootLinks[p])
	}
	s.symlink("/etc/mtab", "../proc/self/mounts")
	for _, f := range k.etcFiles() {
		s.file(f[0], f[1])
	}
	for _, f := range fewNames {
		if !k.isHosts(f[0]) {
			s.file(f[0], f[1])
		}
	}
	k.addMountPoints(s)
	return s.made
}

// addMountPoints makes the mount points that mounts need, except in directories of the host.
func (k *compiler) addMountPoints(s *skeleton) {
	for _, p := range k.layout.Mkdirs {
		if !k.isHosts(p) {
			s.mkdir(p)
		}
	}
	for _, p := range k.layout.Mkfiles {
		if !k.isHosts(p) {
			s.file(p, "")
		}
	}
	for _, m := range k.layout.Mounts {
		if m.IsFile() && m.On == nil && !k.isHosts(m.Dst) {
			s.mkdir(path.Dir(m.Dst))
			if k.c.Root.Writable == 0 {
				s.file(m.Dst, "") // a mount point for the file
			}
		}
	}
}

// isHosts reports whether a path is the host's, or lies in a directory that is mounted from there,
// or behind a link.
func (k *compiler) isHosts(p string) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	if _, ok := k.m.RootLinks["/"+top]; ok || slices.Contains(k.m.RootDirs, "/"+top) {
		return true
	}
	if k.m.Files == nil || k.ownRoot && !k.filesLayer() {
		return false
	}
	if _, ok := k.m.Files.Find(p); ok {
		return true
	}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if e, ok := k.m.Files.Find(dir); ok && !e.Mode.IsDir() || slices.Contains(k.m.Files.Dirs, dir) {
			return true
		}
	}
	return false
}

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

// fewNames has the names that programs look up, for a host that lacks the package with all of them
// (such as netbase).
var fewNames = [][2]string{
	{"/etc/services", "ftp 21/tcp\nssh 22/tcp\ntelnet 23/tcp\nsmtp 25/tcp mail\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp www\npop3 110/tcp pop-3\nntp 123/udp\n" +
		"imap2 143/tcp imap\nldap 389/tcp\nhttps 443/tcp\nhttps 443/udp\nsubmission 587/tcp\nldaps 636/tcp\nimaps 993/tcp\npop3s 995/tcp\nmysql 3306/tcp\npostgresql 5432/tcp postgres\nhttp-alt 8080/tcp webcache\n"},
	{"/etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\nipv6-icmp 58 IPv6-ICMP\n"},
	{"/etc/networks", "default 0.0.0.0\nloopback 127.0.0.0\nlink-local 169.254.0.0\n"},
	{"/etc/host.conf", "multi on\n"},
	{"/etc/shells", "/bin/sh\n"},
}

// etcFiles returns the part of /etc that is the run's own.
func (k *compiler) etcFiles() [][2]string { return OwnFiles(&k.c.Namespaces, k.m.Resolv) }

// OwnFiles returns the part of /etc that is a run's own, as paths and contents. resolv is for a run
// on the host's network.
func OwnFiles(n *spec.Namespaces, resolv string) [][2]string {
	passwd, group := "root:x:0:0:root:/:/bin/sh\n", "root:x:0:\n"
	if n.UID != 0 {
		passwd += fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", spec.UserName, n.UID, n.GID, spec.HomeDir)
	}
	if n.GID != 0 {
		group += fmt.Sprintf("%s:x:%d:\n", spec.UserName, n.GID)
	}
	own := "127.0.0.1 " + n.Hostname + "\n" // a line of its own: who asks for its full name gets this one
	switch n.Network {
	case spec.NetworkHost:
	case spec.NetworkPrivate:
		own = "" // the resolver has its address, at which others reach it
		resolv = "nameserver " + spec.Resolver + "\n"
	default:
		// musl, as in Alpine's images, does not hear that nobody listens, and waits 5 s
		// otherwise.
		resolv = "# no network\noptions timeout:1 attempts:1\n"
	}
	return [][2]string{
		{"/etc/passwd", passwd + "nobody:x:65534:65534:nobody:/:/bin/false\n"},
		{"/etc/group", group + "nogroup:x:65534:\n"},
		{"/etc/hosts", "127.0.0.1 localhost\n" + own + "::1 localhost\n"},
		{"/etc/hostname", n.Hostname + "\n"},
		{"/etc/resolv.conf", resolv},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"},
	}
}
