//go:build linux

package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// extraction makes archive.Apply unpack a layer as container engines do, inside of its directory
// and within limits. It sees every entry before Apply does, and gives Apply a name without links,
// in a directory that exists.
type extraction struct {
	dir    string
	limits limits
	owners bool     // files keep the archive's owners
	attrs  bool     // the store's file system has user extended attributes
	below  []*layer // the lowest first

	files   int64 // entries, and directories that were created for them
	bytes   int64 // of files and extended attributes
	names   int64 // bytes of names and links
	looks   int64 // at what paths lead through
	opaque  bool  // the layers below are hidden
	hides   []string
	opaques []string // directories that hide the layers below
	leftOut []string
}

const (
	maxDepth   = 256  // directories within each other
	maxFollow  = 40   // links that the kernel follows in a path: path_resolution(7)
	maxLeftOut = 1000 // names that are kept for each layer

	// meanName bounds what is kept of an archive in memory: that many bytes, on average, for
	// the name of each file that it may have.
	meanName     = 256
	leastOfNames = 1 << 20

	// meanLooks bounds how often directories and links on the way to files are looked at: so
	// often, on average, for each file. A name can lead through links that are far longer.
	meanLooks    = 64
	leastOfLooks = 1 << 16

	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // aufs's own

	xattrPrefix = "SCHILY.xattr."
)

func refuse(name, format string, args ...any) error {
	if len(name) > 128 {
		name = name[:128] + "..."
	}
	return fmt.Errorf("%w: %q: %w", errHostile, name, fmt.Errorf(format, args...))
}

// filter reports whether an entry becomes a file, and turns it into what Apply is to make.
func (e *extraction) filter(h *tar.Header) (bool, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if err := e.account(h); err != nil {
		return false, err
	}
	name, err := localName(h.Name)
	if err != nil {
		return false, refuse(h.Name, "%w", err)
	}
	dir, base := path.Split(name)
	switch {
	case name == ".":
		return false, nil // the root directory has attributes of its own
	case strings.HasPrefix(base, whiteoutPrefix) || strings.Contains("/"+dir, "/"+whiteoutMeta):
		return false, e.whiteout(dir, base)
	}
	if dir, err = e.enter(dir); err != nil {
		return false, err
	}
	if err := e.keep(h.Name, len(dir)); err != nil {
		return false, err
	}
	name = path.Join(dir, base)
	if err := e.checkPath(name); err != nil {
		return false, err
	}
	return e.prepare(h, name)
}

// account counts an entry. It drops from the header what is not needed, because Apply keeps headers
// of directories and all names in memory.
func (e *extraction) account(h *tar.Header) error {
	if len(h.Name) >= unix.PathMax || len(h.Linkname) >= unix.PathMax {
		return refuse(h.Name, "the name is too long")
	}
	// Apply logs each attribute that can't be set: xattr(7).
	hasAttrs := e.attrs && (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir)
	var kept map[string]string
	for key, value := range h.PAXRecords {
		name, isXattr := strings.CutPrefix(key, xattrPrefix)
		// Attributes outside of "user." are overlayfs's own, or mean nothing in a run.
		if hasAttrs && isXattr && strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[strings.Clone(key)] = strings.Clone(value)
			e.bytes += int64(len(key) + len(value))
		}
	}
	*h = tar.Header{
		Typeflag: h.Typeflag, Name: strings.Clone(h.Name), Linkname: strings.Clone(h.Linkname), Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, AccessTime: h.AccessTime, Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: kept,
	}
	if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeFifo {
		h.Size = 0 // nothing follows, whatever the header says
	}
	if h.Size < 0 || h.Size > math.MaxInt64-e.bytes {
		return refuse(h.Name, "a size of %d bytes", h.Size)
	}
	if e.bytes += h.Size; e.bytes > e.limits.bytes {
		return refuse(h.Name, "more than %d bytes: raise WithLimits", e.limits.bytes)
	}
	return e.count(h.Name, h.Linkname)
}

// count counts a file that is to be created.
func (e *extraction) count(name, link string) error {
	if e.files++; e.files > e.limits.files {
		return refuse(name, "more than %d files, with the directories that they are in: raise WithLimits", e.limits.files)
	}
	return e.keep(name, len(name)+len(link))
}

// keep counts bytes of names that stay in memory: the names in the archive, and the paths to which
// links in them lead.
func (e *extraction) keep(name string, bytes int) error {
	most := int64(leastOfNames)
	if e.limits.files > leastOfNames/meanName {
		most = min(e.limits.files, math.MaxInt64/meanName) * meanName
	}
	if e.names += int64(bytes); e.names > most {
		return refuse(name, "more than %d bytes of names: raise the number of files of WithLimits", most)
	}
	return nil
}

// look counts looks at what the path of a name leads through.
func (e *extraction) look(name string, n int) error {
	most := max(leastOfLooks, min(e.limits.files, math.MaxInt64/meanLooks)*meanLooks)
	if e.looks += int64(n); e.looks > most {
		return refuse(name, "with it, paths lead through more than %d directories and links: raise the number of files of WithLimits", most)
	}
	return nil
}

// depth returns how many parts a path has.
func depth(name string) int { return strings.Count(name, "/") + 1 }

// localName makes a name of an archive relative to the root, as container engines do with names
// that begin with a slash.
func localName(name string) (string, error) {
	name = path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case name == ".." || strings.HasPrefix(name, "../"):
		return "", errors.New("it is not in the root")
	case strings.IndexByte(name, 0) >= 0:
		return "", errors.New("a zero byte in the name")
	}
	return name, nil
}

// checkPath bounds the paths of files. They get a little longer when they are moved to their place
// in the store.
func (e *extraction) checkPath(name string) error {
	switch {
	case strings.Count(name, "/") >= maxDepth:
		return refuse(name, "more than %d directories within each other", maxDepth)
	case len(e.dir)+len(name)+len("/layers") >= unix.PathMax || len(path.Base(name)) > unix.NAME_MAX:
		return refuse(name, "the name is too long")
	}
	return nil
}

// enter returns the path of a directory of the layer. It follows links only within the layer. It
// creates a missing directory, and replaces anything else at its place, because later entries
// count.
func (e *extraction) enter(dir string) (string, error) {
	return e.walk(dir, func(at string, there bool) error {
		if err := e.checkPath(at); err != nil {
			return err
		}
		if there {
			if err := os.Remove(e.host(at)); err != nil {
				return err
			}
		}
		return e.mkdir(at)
	})
}

func (e *extraction) host(name string) string { return filepath.Join(e.dir, name) }

// walk finds a directory of the layer. It calls no where there is none; there reports whether
// something else is at that place.
func (e *extraction) walk(dir string, no func(at string, there bool) error) (string, error) {
	at, rest := "", dir
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			at = path.Dir("/" + at)[1:]
			continue
		}
		next := path.Join(at, name)
		if err := e.look(dir, 1); err != nil {
			return "", err
		}
		info, err := os.Lstat(e.host(next))
		switch {
		case err == nil && info.IsDir():
		case err == nil && info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(e.host(next))
			if err != nil {
				return "", err
			}
			if links++; links > maxFollow {
				return "", refuse(dir, "too many symbolic links")
			}
			if path.IsAbs(target) {
				at = ""
			}
			rest = target + "/" + rest
			continue
		case err == nil || errors.Is(err, fs.ErrNotExist):
			if err := no(next, err == nil); err != nil {
				return "", err
			}
		case errors.Is(err, syscall.ENAMETOOLONG):
			return "", refuse(next, "the name is too long")
		default:
			return "", err
		}
		at = next
	}
	return at, nil
}

// mkdir creates a directory that the layer does not describe, or not yet, with the attributes that
// it has in the layers below.
func (e *extraction) mkdir(name string) error {
	if err := e.count(name, ""); err != nil {
		return err
	}
	if err := os.Mkdir(e.host(name), 0o755); err != nil {
		return err
	}
	mode, uid, gid := fs.FileMode(0o755), -1, -1
	for i := len(e.below) - 1; i >= 0; i-- {
		if err := e.look(name, depth(name)); err != nil {
			return err
		}
		info, err := lstatIn(e.below[i].files(), name)
		if err == nil {
			if st := info.Sys().(*syscall.Stat_t); info.IsDir() {
				mode, uid, gid = info.Mode(), int(st.Uid), int(st.Gid)
			}
			break
		}
		if e.below[i].info.Opaque {
			break
		}
	}
	if e.owners {
		if err := os.Lchown(e.host(name), uid, gid); err != nil {
			return err
		}
	}
	return os.Chmod(e.host(name), mode) // despite the umask
}

func lstatIn(dir, name string) (fs.FileInfo, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Lstat(name)
}

// prepare gives an entry the name under which it is created, and checks its type.
func (e *extraction) prepare(h *tar.Header, name string) (bool, error) {
	switch h.Typeflag {
	case tar.TypeDir:
		if !e.owners {
			h.Mode |= 0o700 // its own files must be created and removed
		}
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		h.Typeflag = tar.TypeReg
		if !e.owners {
			h.Mode |= 0o400
		}
	case tar.TypeSymlink, tar.TypeFifo:
	case tar.TypeLink:
		if !e.owners {
			h.Mode |= 0o400 // it becomes the mode of the file that both are
		}
		if same, err := e.hardLink(h, name); same || err != nil {
			return false, err
		}
	case tar.TypeChar, tar.TypeBlock:
		return false, e.leaveOut(name)
	default:
		return false, refuse(h.Name, "a file of type %q", h.Typeflag)
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid > maxKernelID || h.Gid > maxKernelID {
		return false, refuse(h.Name, "its owner %d:%d: ids go from 0 to %d", h.Uid, h.Gid, maxKernelID)
	}
	h.Name, h.Uid, h.Gid = name, runID(h.Uid), runID(h.Gid)
	return true, nil
}

// hardLink finds the target of a hard link, and reports whether that is the link itself.
func (e *extraction) hardLink(h *tar.Header, name string) (same bool, err error) {
	bad := func(why string) error { return refuse(h.Name, "a hard link to %.128q, %s", h.Linkname, why) }
	target, err := localName(h.Linkname)
	if err != nil {
		return false, bad("which is not in the root")
	}
	dir, base := path.Split(target)
	none := errors.New("none")
	dir, err = e.walk(dir, func(string, bool) error { return none })
	if err != nil && err != none {
		return false, err
	}
	h.Linkname = path.Join(dir, base)
	info, statErr := os.Lstat(e.host(h.Linkname))
	switch {
	case err == none || statErr != nil:
		return false, bad("which the layer does not have before it")
	case info.IsDir():
		return false, bad("which is a directory")
	}
	return h.Linkname == name, nil
}

// leaveOut leaves out a device node, which no run could use. It still hides what the layers below
// have at its place.
func (e *extraction) leaveOut(name string) error {
	if err := os.RemoveAll(e.host(name)); err != nil {
		return err
	}
	if strings.HasPrefix(name, "dev/") {
		return nil // a run has a /dev of its own
	}
	if len(e.leftOut) < maxLeftOut {
		e.leftOut = append(e.leftOut, "/"+name)
	}
	e.hide(name)
	return nil
}

// whiteout records which files of the layers below are hidden.
func (e *extraction) whiteout(dir, base string) error {
	name, isWhiteout := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case base == whiteoutOpaque && dir == "":
		e.opaque = true // overlayfs can't mark a root as opaque
		return nil
	case base != whiteoutOpaque && strings.Contains("/"+dir+base, "/"+whiteoutMeta):
		return nil
	case isWhiteout && (name == "" || name == "." || name == ".."):
		return refuse(dir+base, "a whiteout of no file")
	case len(e.below) == 0:
		return nil
	}
	dir, err := e.enter(dir)
	if err != nil {
		return err
	}
	if err := e.keep(dir+base, len(dir)); err != nil {
		return err
	}
	if base == whiteoutOpaque {
		e.opaques = append(e.opaques, dir)
		return nil
	}
	if err := e.checkPath(path.Join(dir, name)); err != nil {
		return err
	}
	e.hide(path.Join(dir, name))
	return nil
}

func (e *extraction) hide(name string) {
	if len(e.below) > 0 {
		e.hides = append(e.hides, name)
	}
}

// hasAttrs reports whether a directory's file system has user extended attributes.
func hasAttrs(dir string) bool {
	const name = "user.sandbox"
	if err := unix.Lsetxattr(dir, name, nil, 0); err != nil {
		return false
	}
	return unix.Lremovexattr(dir, name) == nil
}

// keepAll makes Apply treat no entry as a whiteout.
func keepAll(*tar.Header, string) (bool, error) { return true, nil }

// hideBelow finally turns the recorded whiteouts into overlayfs's form. They only hide files of
// layers below, so it does not matter whether the layer's own files at their places come before or
// after them.
func (e *extraction) hideBelow() error {
	for _, name := range e.hides {
		if err := e.look(name, 2*depth(name)); err != nil {
			return err
		}
		if !e.hasDir(path.Dir(name)) {
			continue // replaced by something that hides more
		}
		if e.hasDir(name) {
			e.opaques = append(e.opaques, name)
		} else if err := e.makeWhiteout(e.host(name)); err != nil {
			return err
		}
	}
	for _, name := range e.opaques {
		if err := e.look(name, depth(name)); err != nil {
			return err
		}
		if name == "" || !e.hasDir(name) {
			e.opaque = e.opaque || name == ""
			continue
		}
		err := unix.Lsetxattr(e.host(name), "user.overlay.opaque", []byte("y"), 0)
		if err == unix.ENOTSUP {
			err = fmt.Errorf("the store's file system has no extended attributes for users, which it needs to hide what is below %s: %w: use OpenStore on another", e.host(name), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hasDir reports whether the layer has the directory, without a link on the way.
func (e *extraction) hasDir(name string) bool {
	at := ""
	for part := range strings.SplitSeq(name, "/") {
		at = path.Join(at, part)
		if info, err := os.Lstat(e.host(at)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// makeWhiteout hides what the layers below have at a place where the layer has no file of its own.
// The directory keeps its times.
func (e *extraction) makeWhiteout(file string) error {
	var dir unix.Stat_t
	if err := unix.Lstat(path.Dir(file), &dir); err != nil {
		return &fs.PathError{Op: "lstat", Path: path.Dir(file), Err: err}
	}
	switch err := unix.Mknod(file, unix.S_IFCHR, 0); err {
	case nil:
		return unix.UtimesNanoAt(unix.AT_FDCWD, path.Dir(file), []unix.Timespec{dir.Atim, dir.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	case unix.EEXIST:
		return nil
	case unix.EPERM: // fs/overlayfs/dir.c, ovl_mknod
		return fmt.Errorf("the store's file system can't hide files of lower layers, as a container's own can't: %w: use OpenStore on a volume", err)
	default:
		return &fs.PathError{Op: "mknod", Path: file, Err: err}
	}
}
