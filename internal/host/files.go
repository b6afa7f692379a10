//go:build linux

// Package host gathers facts of this machine: what programs of runs are compiled for, and what of
// /etc and /var belongs to the machine's programs, and to nobody.
//
// The latter is what the package manager says packages installed, and what they generate, as far as
// everybody may read it, less what tells of this machine, its users and its services, and what
// looks like a secret.
package host

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of what is copied. A file that is larger is left out, and so is all that comes when the
// total is reached.
const (
	maxFile    = 4 << 20
	MaxTotal   = 8 << 20 // bytes of all files
	maxNames   = 1 << 20 // bytes of paths and links
	maxEntries = 4096
	maxName    = 256 // of a path or the target of a link, or it is left out
	maxDepth   = 16
)

// Entry is a directory, a regular file or a symbolic link.
type Entry struct {
	Path string // absolute
	Mode fs.FileMode
	Data []byte // of a file
	Link string // the target of a symbolic link
}

// Files is what was found.
type Files struct {
	Entries []Entry           // to be copied, parents before children
	Dirs    []string          // directories, too large for that, to be mounted
	Manager string            // whose word it is: "dpkg", "apk", "pacman", or "" for the list in rules.go
	Left    map[string]string // what a package has there and is left out, and why
	Sum     uint64            // of Entries and Dirs, in this process

	index   map[string]int
	starved bool // there may be more
}

// Find returns the entry at a path.
func (f *Files) Find(p string) (Entry, bool) {
	if f == nil {
		return Entry{}, false
	}
	i, ok := f.index[p]
	if !ok {
		return Entry{}, false
	}
	return f.Entries[i], true
}

// Count is the number of regular files.
func (f *Files) Count() (n int) {
	for _, e := range f.Entries {
		if e.Mode.IsRegular() {
			n++
		}
	}
	return n
}

// Read looks through /etc and /var below root, which is "" but in tests. Links to what lies below
// one of the directories shown are kept.
func Read(root string, shown []string) *Files {
	r := &reader{root: root, shown: shown, owned: readOwned(root), left: map[string]string{}, links: map[string]string{}, found: map[string]Entry{}}
	r.walk("/etc", 0, false)
	for _, dir := range generatedVar {
		r.addVar(dir)
	}
	r.addLinks()
	return r.files()
}

// reader gathers Files.
type reader struct {
	root  string
	shown []string
	owned *owned
	left  map[string]string
	links map[string]string
	found map[string]Entry
	dirs  []string
	total int64
}

// walk looks at what is in a directory that everybody may search. all says that all of it is a
// program's.
func (r *reader) walk(dir string, depth int, all bool) {
	list, err := os.ReadDir(r.root + dir)
	if !r.owned.opened(err) || depth > maxDepth {
		return
	}
	for _, e := range list {
		p := path.Join(dir, e.Name())
		if isMachines(p) {
			continue
		}
		r.add(p, e.Type(), depth, all || e.IsDir() && r.owned.all(p))
	}
}

func (r *reader) add(p string, is fs.FileMode, depth int, all bool) {
	owned := all || r.owned.has(p) || r.owned.all(p)
	if isSecretName(path.Base(p)) && is != fs.ModeSymlink {
		if owned {
			r.left[p] = "its name is one of secrets, or of copies"
		}
		return
	}
	switch {
	case len(r.found)+len(r.links) >= maxEntries || len(p) > maxName:
		r.left[p] = "there are too many, or its name is too long"
	case is.IsDir():
		r.addDir(p, depth, owned, all)
	case is == fs.ModeSymlink:
		if target, err := os.Readlink(r.root + p); err == nil && len(target) <= maxName {
			r.links[p] = target
		}
	case is.IsRegular() && owned:
		r.addFile(p, all)
	}
}

func (r *reader) addDir(p string, depth int, owned, all bool) {
	info, err := os.Lstat(r.root + p)
	switch {
	case err != nil || !info.IsDir(): // it is gone
	case info.Mode()&0o001 == 0 && owned:
		r.left[p] = forNotAll
	case info.Mode()&0o001 != 0:
		if owned {
			r.found[p] = Entry{Path: p, Mode: fs.ModeDir | info.Mode().Perm()}
		}
		r.walk(p, depth+1, all)
	}
}

// forNotAll is why a directory or a file is left out.
const forNotAll = "not everybody may read it"

// addFile adds a file. generated says that a program wrote it.
func (r *reader) addFile(p string, generated bool) {
	data, mode, err := r.read(p)
	r.owned.opened(err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		r.left[p] = forNotAll
		return
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		r.left[p] = err.Error()
		return
	case r.total+int64(len(data)) > MaxTotal:
		r.left[p] = fmt.Sprintf("all files together are larger than %d bytes", MaxTotal)
		return
	}
	if why := secretContent(data, generated && r.owned.manager != "" || p == "/etc/ld.so.cache" || r.owned.isOriginal(p, data)); why != "" {
		r.left[p] = why
		return
	}
	r.total += int64(len(data))
	r.found[p] = Entry{Path: p, Mode: mode.Perm(), Data: data}
}

// read returns what everybody may read.
func (r *reader) read(p string) ([]byte, fs.FileMode, error) {
	fd, err := unix.Open(r.root+p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return nil, 0, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o004 == 0:
		return nil, 0, fs.ErrPermission
	case st.Size > maxFile:
		return nil, 0, fmt.Errorf("larger than %d bytes", maxFile)
	}
	data := make([]byte, st.Size)
	n := 0
	for n < len(data) {
		got, err := unix.Read(fd, data[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		if got == 0 {
			break // it was cut meanwhile
		}
		n += got
	}
	return data[:n], fs.FileMode(st.Mode & 0o777), nil
}

// addVar adds a directory of what programs generate: a copy if it is small.
func (r *reader) addVar(dir string) {
	for p := dir; p != "/"; p = path.Dir(p) {
		info, err := os.Lstat(r.root + p)
		if err != nil || !info.IsDir() || info.Mode()&0o005 != 0o005 {
			return
		}
	}
	if !r.isSmall(dir) {
		r.dirs = append(r.dirs, dir)
		return
	}
	r.addDir(dir, 0, true, true)
}

// maxVar is how much of a directory in /var is copied rather than mounted.
const maxVar = 256 << 10

func (r *reader) isSmall(dir string) bool {
	bytes, entries := int64(0), 0
	err := fs.WalkDir(os.DirFS(r.root+dir), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if entries++; !d.IsDir() {
			bytes += info.Size()
		}
		if bytes > maxVar || entries > 256 {
			return fs.ErrInvalid
		}
		return nil
	})
	return r.owned.opened(err)
}

// addLinks adds the links that lead to what is shown.
func (r *reader) addLinks() {
	for p, target := range r.links {
		if r.leads(p, 0) {
			r.found[p] = Entry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: target}
		}
	}
}

// leads reports whether a link's target is shown.
func (r *reader) leads(link string, depth int) bool {
	to := r.links[link]
	if !path.IsAbs(to) {
		to = path.Join(path.Dir(link), to)
	}
	to = path.Clean(to)
	if _, ok := r.links[to]; ok {
		return depth < 10 && r.leads(to, depth+1)
	}
	if _, ok := r.found[to]; ok || to == "/dev/null" {
		return true
	}
	return slices.ContainsFunc(slices.Concat(r.shown, r.dirs), func(dir string) bool { return to == dir || strings.HasPrefix(to, dir+"/") })
}

// files sorts what was found, with the directories that it is in.
func (r *reader) files() *Files {
	for _, p := range slices.Concat(keys(r.found), r.dirs) {
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			if _, ok := r.found[dir]; !ok {
				r.found[dir] = Entry{Path: dir, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	paths := keys(r.found)
	slices.Sort(paths)
	var entries []Entry
	names := 0
	for _, p := range paths { // parents come before children
		e := r.found[p]
		if names += len(p) + len(e.Link); len(entries) >= maxEntries || names > maxNames {
			r.left[p] = "there are too many"
			continue
		}
		entries = append(entries, e)
	}
	f := NewFiles(entries, r.dirs)
	f.Manager, f.Left, f.starved = r.owned.manager, r.left, r.owned.starved
	return f
}

// NewFiles returns Files of these entries, parents before children.
func NewFiles(entries []Entry, dirs []string) *Files {
	f := &Files{Entries: entries, Dirs: dirs, index: make(map[string]int, len(entries))}
	var sum maphash.Hash
	sum.SetSeed(seed())
	for i, e := range entries {
		f.index[e.Path] = i
		fmt.Fprintf(&sum, "%s\x00%o\x00%s\x00%d\x00", e.Path, e.Mode, e.Link, len(e.Data))
		_, _ = sum.Write(e.Data) // never fails
	}
	for _, dir := range dirs {
		fmt.Fprintf(&sum, "%s\x00", dir)
	}
	f.Sum = sum.Sum64()
	return f
}

var seed = sync.OnceValue(maphash.MakeSeed)

func keys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	return list
}
