//go:build linux

package run

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/wall"
)

// The root of a run in a cell of gVisor: directories on top of each other, what is the run's own
// uppermost, then this program's own file, then those of the options or what HostRootfs has of the
// host's /etc. Mount points that are missing gVisor makes by itself.

// guestRoot makes the directories and lists what is mounted.
func (r *Run) guestRoot() error {
	g, c := r.guest, &r.spec.Root
	found, err := lookFor(c, true)
	if err != nil {
		return err
	}
	top, err := newTree(filepath.Join(g.Dir, "top"))
	if err != nil {
		return err
	}
	defer top.root.Close()
	own, args, err := r.cell.OwnInGuest()
	if err != nil {
		return fmt.Errorf("this program's own file: %w", err)
	}
	g.Args = args
	layers := []string{own}
	if c.Rootfs.Layers == nil {
		layers, err = r.guestHost(top, layers)
	} else {
		err = r.guestPoints(top, found.Missing)
		for _, dir := range slices.Backward(c.Rootfs.Layers) {
			layers = append(layers, dir)
		}
	}
	if err != nil {
		return err
	}
	g.Lower = []string{"top"}
	for i, dir := range layers {
		link := fmt.Sprint("l", i) // short, and without what mount options take for a sign
		if err := os.Symlink(dir, filepath.Join(g.Dir, link)); err != nil {
			return err
		}
		g.Lower = append(g.Lower, link)
	}
	return r.guestMounts(c.Layout(found.Found))
}

// guestHost makes what HostRootfs, or a root with nothing in it, has besides directories of the
// host.
func (r *Run) guestHost(top *tree, layers []string) ([]string, error) {
	if r.spec.Root.Rootfs.Parts == spec.Programs {
		m := r.engine.now(r.spec)
		for _, dir := range slices.Concat(m.RootDirs, m.Files.Dirs) {
			r.guest.Mounts = append(r.guest.Mounts, wall.GuestMount{Source: dir, Destination: dir, ReadOnly: true})
		}
		dir, err := r.cell.GuestLayer(fmt.Sprintf("%016x", m.Files.Sum), func(root *os.Root) error {
			t := &tree{root: root}
			for _, p := range slices.Sorted(maps.Keys(m.RootLinks)) {
				t.do(root.Symlink(m.RootLinks[p], p[1:]))
			}
			for _, e := range m.Files.Entries {
				t.do(putEntry(root, e))
			}
			return t.err
		})
		if err != nil {
			return nil, err
		}
		layers = append(layers, dir)
	}
	for _, dir := range []string{"/etc", "/home", "/run", "/var"} {
		top.mkdir(dir, overlay.Dir{Mode: 0o755})
	}
	for _, l := range r.spec.Root.Links() {
		top.do(top.root.Symlink(l.Target, l.Path[1:]))
	}
	for _, f := range compile.OwnFiles(&r.spec.Namespaces, "") {
		top.file(f[0], []byte(f[1]), 0o644, 0, 0)
	}
	return layers, top.err
}

// guestPoints makes the files of the run's own, and the directories of its user, that the root's
// directories lack. Directories above them that are there keep their owners and permissions.
func (r *Run) guestPoints(top *tree, missing []compile.Point) error {
	n := &r.spec.Namespaces
	content := map[string]string{}
	for _, f := range compile.OwnFiles(n, "") {
		content[f[0]] = f[1]
	}
	for _, p := range missing {
		if p.Content == "" && !p.Own {
			continue // a mount point
		}
		dir, parts := "", strings.Split(strings.TrimPrefix(p.Path, "/"), "/")
		for i, name := range parts {
			dir = path.Join("/", dir, name)
			last := i == len(parts)-1
			switch {
			case last && p.Content != "":
				top.file(dir, []byte(content[p.Content]), 0o644, 0, 0)
			case i < len(p.Have):
				top.mkdir(dir, p.Have[i])
			case p.Own:
				top.mkdir(dir, overlay.Dir{Mode: 0o755, UID: n.UID, GID: n.GID})
			default:
				top.mkdir(dir, overlay.Dir{Mode: 0o755})
			}
		}
	}
	return top.err
}

// guestMounts lists what options mount, and the file systems that every run has. Files are bound,
// read-only.
func (r *Run) guestMounts(l *spec.Layout) error {
	g, n := r.guest, &r.spec.Namespaces
	files, err := newTree(filepath.Join(g.Dir, "files"))
	if err != nil {
		return err
	}
	defer files.root.Close()
	content := map[string]spec.File{}
	for _, p := range slices.Concat(l.Filled, l.Files) {
		content[p.Dst], _ = p.Source.(spec.File)
	}
	for i, p := range slices.Concat(l.Mounts, l.Files) {
		m := wall.GuestMount{Destination: p.Dst}
		switch source := p.Source.(type) {
		case spec.Bind:
			m.Source, m.ReadOnly = source.Path, source.ReadOnly
		case spec.Tmpfs:
			m.Options = []string{fmt.Sprintf("size=%d", source.Size), "mode=" + p.Perm, fmt.Sprintf("uid=%d", n.UID), fmt.Sprintf("gid=%d", n.GID)}
		case spec.File:
			if later, ok := content[p.Dst]; ok {
				source = later
			}
			name := fmt.Sprint("/", i)
			files.file(name, []byte(source.Data), source.Mode, n.UID, n.GID)
			m.Source, m.ReadOnly = filepath.Join(g.Dir, "files", name), true
		default:
			return fmt.Errorf("%s can't be mounted at %s", p.Source.Option(), p.Dst)
		}
		g.Mounts = append(g.Mounts, m)
	}
	return files.err
}

// tree makes files in a directory that nobody else can reach. Its first error stays.
type tree struct {
	root *os.Root
	made map[string]bool
	err  error
}

func newTree(dir string) (*tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err == nil {
		err = root.Chmod(".", 0o755) // whatever the umask
	}
	return &tree{root: root, made: map[string]bool{}}, err
}

func (t *tree) do(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *tree) mkdir(p string, is overlay.Dir) {
	if t.made[p] || t.err != nil {
		return
	}
	t.made[p] = true
	t.do(t.root.Mkdir(p[1:], 0o700))
	t.own(p, is.Mode, is.UID, is.GID)
}

func (t *tree) file(p string, data []byte, mode fs.FileMode, uid, gid int) {
	if t.made[p] || t.err != nil {
		return
	}
	t.made[p] = true
	t.do(t.root.WriteFile(p[1:], data, 0o600))
	t.own(p, mode, uid, gid)
}

// own sets owner and mode, in this order: a change of the owner clears bits.
func (t *tree) own(p string, mode fs.FileMode, uid, gid int) {
	if t.err == nil {
		t.do(t.root.Chown(p[1:], uid, gid))
	}
	if t.err == nil {
		t.do(t.root.Chmod(p[1:], mode))
	}
}
