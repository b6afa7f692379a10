//go:build linux

package run

// Mount points, and files of the run's own, that the directories of a root lack.

import (
	"os"
	"path"
	"slices"

	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/spec"
)

// sourceFiles returns, by their index, which binds are not of directories: their mount points must
// not be directories either. A source that does not exist is refused elsewhere.
func sourceFiles(r *spec.Root) map[int]bool {
	files := map[int]bool{}
	for i, m := range r.Mounts {
		if bind, ok := m.Source.(spec.Bind); ok {
			info, err := os.Stat(bind.Path)
			files[i] = err == nil && !info.IsDir()
		}
	}
	return files
}

// lookFor finds what compiling needs to know. The missing mount points that it finds are only used
// to add empty directories on a layer above: where things are mounted is resolved again, inside the
// root, by each run.
func lookFor(r *spec.Root, layers bool) (compile.Found, error) {
	f := compile.Found{Found: spec.Found{Files: sourceFiles(r)}}
	if r.Rootfs.Layers == nil {
		return f, nil
	}
	m, err := overlay.Open(r.Rootfs.Layers)
	if err != nil {
		return f, r.Subject().Wrong("%w", err)
	}
	defer m.Close()
	l := r.Layout(f.Found)
	f.Missing = append(missingPlaces(r, m, l), missingOwned(r, m, l)...)
	layered := len(r.Rootfs.Layers) > 1 || r.Writable != 0 || layers && r.Rootfs.KeepsIDs || slices.ContainsFunc(f.Missing, needsLayer)
	f.Missing = append(f.Missing, ownFiles(r, m, layers, layered)...)
	if err := m.Err(); err != nil {
		return f, r.Subject().Wrong("%w", err)
	}
	if l.Sys {
		f = withoutSys(r, f)
	}
	return f, nil
}

// missingPlaces returns the mount points that the root's directories lack.
func missingPlaces(r *spec.Root, m *overlay.View, l *spec.Layout) (missing []compile.Point) {
	look := func(p string, file bool) {
		if gap, ok := m.Missing(p); ok {
			missing = append(missing, compile.Point{Path: gap.Path, Have: gap.Have, File: file})
		}
	}
	for _, dir := range l.Mkdirs {
		look(dir, false)
	}
	for _, file := range l.Mkfiles {
		look(file, true)
	}
	for _, m := range l.Mounts {
		switch {
		case !m.IsFile() || m.On != nil:
		case r.Writable != 0:
			look(path.Dir(m.Dst), false) // the file itself is made there
		default:
			look(m.Dst, true)
		}
	}
	return missing
}

// missingOwned returns the directories of the run's user that the root lacks, or that belong to
// another user there.
func missingOwned(r *spec.Root, m *overlay.View, l *spec.Layout) (missing []compile.Point) {
	if r.IfCan && r.Writable == 0 {
		return nil // before Linux 5.11: there is no layer on which they could be made
	}
	for _, dir := range l.Owned {
		gap, ok := m.Missing(dir)
		if ok || r.Writable != 0 && len(gap.Have) > 0 {
			missing = append(missing, compile.Point{Path: gap.Path, Have: gap.Have, Own: true})
		}
	}
	return missing
}

// namesOfRun lists the files with a run's own name, and with where other names are looked up. A run
// has its own in every root, as containers do. What an option puts there wins.
var namesOfRun = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// ownFiles returns where namesOfRun are put in a root of directories: on the layer above, if there
// is one or if one of the files is missing; else they are mounted over those that the directory
// has.
func ownFiles(r *spec.Root, m *overlay.View, layers, layered bool) (files []compile.Point) {
	for _, name := range namesOfRun {
		if slices.ContainsFunc(r.Mounts, func(o spec.Mount) bool { return spec.IsIn(name, path.Clean(o.Dst)) }) {
			continue
		}
		at, exists, ok := m.FileAt(name)
		if !ok {
			continue // /etc is not a directory
		}
		layered = layered || layers && !exists
		files = append(files, compile.Point{Path: at.Path, Have: at.Have, File: true, Content: name, Over: exists})
	}
	if layered {
		for i := range files {
			files[i].Over = false
		}
		return files
	}
	return slices.DeleteFunc(files, func(p compile.Point) bool { return !p.Over })
}

// withoutSys leaves out /sys if the directory lacks it and needs no layer on top for anything else:
// a layer keeps runs from seeing later changes of the directory, and takes Linux 5.11.
func withoutSys(r *spec.Root, f compile.Found) compile.Found {
	if len(r.Rootfs.Layers) > 1 || r.Writable != 0 || slices.ContainsFunc(f.Missing, needsLayer) {
		return f
	}
	f.Missing = slices.DeleteFunc(f.Missing, func(p compile.Point) bool {
		isSys := p.Path == "/sys"
		f.NoSys = f.NoSys || isSys
		return isSys
	})
	return f
}

// needsLayer reports whether what is missing must be put on a layer, for which /sys alone is no
// reason.
func needsLayer(p compile.Point) bool { return !p.Over && p.Path != "/sys" }
