package spec

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/fault"
)

// Root is a run's root file system, and what is mounted in it.
type Root struct {
	Rootfs   Rootfs
	Mounts   []Mount
	Writable int64    // bytes for changes, 0 for read-only
	IfCan    bool     // Writable is an image's: where the kernel can do it
	Upper    any      // the *scratch.Scratch that takes the changes, nil if they go with the run
	HasUpper bool     // one was given, if only a wrong one
	Image    string   // the image that the root is, for errors
	Dirs     []string // that are made for the run's user where the root lacks them
}

// Rootfs is what sandbox.Rootfs says.
type Rootfs struct {
	Layers   []string // directories, the lowest first; none is a root in memory, of parts of the host
	KeepsIDs bool     // files of layers keep their owners
	Parts    Parts
}

// Parts is what of the host a root in memory shows.
type Parts int

const (
	Programs   Parts = iota // and libraries
	Nothing                 // but what options add
	OwnProgram              // the libraries of this process
)

// maxLayers keeps a run's descriptors, and the mount option that names its layers, within what each
// may have.
const maxLayers = 64

// MaxFileBytes is the most that all files of WithFile have in them. It keeps a run's program within
// one message, as maxBinds does.
const MaxFileBytes = 1 << 20

const maxBinds = 100

// ShowsHost reports whether the root is HostRootfs.
func (r *Root) ShowsHost() bool { return r.Rootfs.Layers == nil && r.Rootfs.Parts == Programs }

// Link is a symbolic link of a root in memory, from one directory to another.
type Link struct{ Path, Target string }

// Links are those of one root.
type Links []Link

// Links returns the links that a root in memory has, as every distribution does: programs and
// options name either path. What an option mounts at a link's path, or at /var, is there instead.
func (r *Root) Links() (links Links) {
	if r.Rootfs.Layers != nil {
		return nil
	}
	for _, l := range []Link{{"/var/run", "/run"}, {"/var/tmp", "/tmp"}} {
		if !slices.ContainsFunc(r.Mounts, func(m Mount) bool { return IsIn(l.Path, path.Clean(m.Dst)) }) {
			links = append(links, l)
		}
	}
	return links
}

// Place returns where a mount is put: its path, behind the links.
func (links Links) Place(m Mount) string {
	dst := path.Clean(m.Dst)
	for _, l := range links {
		if isBelow(dst, l.Path) {
			return l.Target + strings.TrimPrefix(dst, l.Path)
		}
	}
	return dst
}

// SetWritable sets the room for changes, which are gone with the run.
func (r *Root) SetWritable(bytes int64) {
	r.Writable, r.IfCan, r.Upper, r.HasUpper = bytes, false, nil, false
}

// SetUpper has changes go to a *scratch.Scratch of that size, or is wrong if that is nil.
func (r *Root) SetUpper(scratch any, bytes int64) {
	r.Writable, r.IfCan, r.Upper, r.HasUpper = bytes, false, scratch, true
}

// Equal reports whether both are the same root with the same in it.
func (r *Root) Equal(o *Root) bool {
	return r.Rootfs.equal(&o.Rootfs) && slices.Equal(r.Mounts, o.Mounts) && r.Writable == o.Writable && r.IfCan == o.IfCan &&
		r.Upper == o.Upper && r.HasUpper == o.HasUpper && r.Image == o.Image && slices.Equal(r.Dirs, o.Dirs)
}

func (r *Rootfs) equal(o *Rootfs) bool {
	return slices.Equal(r.Layers, o.Layers) && r.KeepsIDs == o.KeepsIDs && r.Parts == o.Parts
}

// Subject is what errors about the root name.
func (r *Root) Subject() fault.Subject { return fault.Subject{Option: "WithRootfs", Image: r.Image} }

func (r *Rootfs) check() (errs []error) {
	switch {
	case r.KeepsIDs && len(r.Layers) == 0:
		errs = append(errs, errors.New("LayersRootfs: no directory is given"))
	case len(r.Layers) > maxLayers:
		errs = append(errs, fmt.Errorf("LayersRootfs: %d layers, at most %d are possible", len(r.Layers), maxLayers))
	}
	seen := map[string]bool{}
	for _, dir := range r.Layers {
		if err := checkHostPath(dir); err != nil {
			errs = append(errs, err)
		} else if dir = path.Clean(dir); seen[dir] {
			errs = append(errs, fmt.Errorf("LayersRootfs: %s is given twice", dir))
		}
		seen[dir] = true
	}
	return errs
}

func (r *Root) check() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, fault.Option(option, format, args...))
	}
	for _, err := range r.Rootfs.check() {
		errs = append(errs, r.Subject().Wrong("%w", err))
	}
	if r.HasUpper && r.Upper == nil {
		bad("WithScratchRoot", "the scratch was not made by NewScratch: look at the error of that")
	} else if r.Writable < 0 {
		bad("WithWritableRoot", "%d is not a positive number of bytes", r.Writable)
	}
	seen := map[string]Mount{}
	links, bytes, binds := r.Links(), 0, 0
	for _, m := range r.Mounts {
		if err := m.Check(); err != nil {
			bad(m.Source.Option(), "%w", err)
			continue
		}
		dst := links.Place(m)
		if other, ok := seen[dst]; ok {
			bad(m.Source.Option(), "%s: hides what %s puts there", dst, other.Source.Option())
		}
		seen[dst] = m
		if file, ok := m.Source.(File); ok {
			bytes += len(file.Data)
		}
		if m.IsGiven() {
			binds++
		}
	}
	if bytes > MaxFileBytes {
		bad("WithFile", "%d bytes together, at most %d are possible: use WithReadOnlyBind", bytes, MaxFileBytes)
	}
	if binds > maxBinds {
		bad("WithBind", "%d binds, at most %d are possible", binds, maxBinds)
	}
	return append(errs, checkFiles(seen)...)
}

// checkFiles refuses files below other files and inside binds, where they
// would be written to the host.
func checkFiles(all map[string]Mount) (errs []error) {
	for _, dst := range slices.Sorted(maps.Keys(all)) {
		m := all[dst]
		for dir := path.Dir(dst); dir != "/"; dir = path.Dir(dir) {
			switch above, ok := all[dir]; {
			case !ok:
				continue
			case above.IsFile():
				errs = append(errs, fault.Option(m.Source.Option(), "%s: lies below the file %s", dst, dir))
			case m.IsFile() && above.IsGiven():
				errs = append(errs, fault.Option("WithFile", "%s: lies in the %v: write the file there", dst, above.Source))
			}
			break
		}
	}
	return errs
}

// IsIn reports whether a path is a directory, which is not /, or lies in it.
func IsIn(p, dir string) bool { return p == dir || isBelow(p, dir) }

// isBelow reports whether a path lies in a directory, which is not /.
func isBelow(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }
