package sandbox

import (
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/overlay"
)

// point is a mount point that a root directory lacks. Its parents, as far as
// they exist, are named without symbolic links.
type point struct {
	path string
	file bool
	own  bool          // belongs to the run's user
	have []overlay.Dir // directories on the way that exist, from the top

	content string // it is a file with the run's own content: that of HostRootfs at this path
	over    bool   // which is mounted over one that exists
}

// isThere tells whether the root has it, and only its owner is to be another.
func (p *point) isThere() bool {
	return p.own && len(p.have) == strings.Count(p.path, "/")
}

// withSources notes which binds are not of directories: their mount points must
// not be directories either. A source that is not there is refused elsewhere.
func (r rootConfig) withSources() rootConfig {
	r.mounts = slices.Clone(r.mounts)
	for i := range r.mounts {
		if m := &r.mounts[i]; m.kind.isBind() {
			info, err := os.Stat(m.src)
			m.file = err == nil && !info.IsDir()
		}
	}
	return r
}

// missingPoints looks which mount points the root's directories lack. What it finds is
// only used to add empty directories on a layer above: where things are
// mounted is resolved again, inside the root, by each run.
func (r *rootConfig) missingPoints(layers bool) ([]point, error) {
	if r.rootfs.layers == nil {
		return nil, nil
	}
	m, err := overlay.Open(r.rootfs.layers)
	if err != nil {
		return nil, r.subject().wrong("%w", err)
	}
	defer m.Close()
	l := r.layout()
	var missing []point
	look := func(p string, file bool) {
		if gap, ok := m.Missing(p); ok {
			missing = append(missing, point{path: gap.Path, have: gap.Have, file: file})
		}
	}
	for _, dir := range l.mkdirs {
		look(dir, false)
	}
	for _, file := range l.mkfiles {
		look(file, true)
	}
	for _, m := range l.mounts {
		switch {
		case m.kind != fileMount || m.on != nil:
		case r.writable != nil:
			look(path.Dir(m.dst), false) // where the file itself is made
		default:
			look(m.dst, true)
		}
	}
	if r.ifCan && r.writable == nil {
		l.owned = nil // before Linux 5.11: there is no layer on which they could be made
	}
	for _, dir := range l.owned {
		gap, ok := m.Missing(dir)
		if ok || r.writable != nil && len(gap.Have) > 0 {
			missing = append(missing, point{path: gap.Path, have: gap.Have, own: true})
		}
	}
	layered := len(r.rootfs.layers) > 1 || r.writable != nil || layers && r.rootfs.keepsIDs || slices.ContainsFunc(missing, needsLayer)
	missing = append(missing, r.ownFiles(m, layers, layered)...)
	if l.sys {
		missing = r.withoutSys(missing)
	}
	return missing, nil
}

// namesOfRun is the files that tell a run its own name and where other names are looked up, which
// it has in every root, as containers have them. What an option puts there wins.
var namesOfRun = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// ownFiles returns where namesOfRun are put into directories: on the layer above, if there is one
// or one of them is missing, else they are mounted over those that the directory has.
func (r *rootConfig) ownFiles(m *overlay.View, layers, layered bool) (files []point) {
	for _, name := range namesOfRun {
		if slices.ContainsFunc(r.mounts, func(o mount) bool { return isBelow(name, path.Clean(o.dst)) }) {
			continue
		}
		at, exists, ok := m.FileAt(name)
		if !ok {
			continue // /etc is no directory
		}
		layered = layered || layers && !exists
		files = append(files, point{path: at.Path, have: at.Have, file: true, content: name, over: exists})
	}
	if layered {
		for i := range files {
			files[i].over = false
		}
		return files
	}
	return slices.DeleteFunc(files, func(p point) bool { return !p.over })
}

// isBelow reports whether p is dir or lies in it.
func isBelow(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
