package sandbox

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// point is a mount point that a root directory lacks. Its parents, as far as
// they exist, are named without symbolic links.
type point struct {
	path string
	file bool
	have []fs.FileMode // permissions of the parents that exist
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

// missingPoints looks which mount points a DirRootfs lacks. What it finds is
// only used to add empty directories on a layer above: where things are
// mounted is resolved again, inside the root, by each run.
func (r *rootConfig) missingPoints() ([]point, error) {
	if r.rootfs.dir == "" {
		return nil, nil
	}
	root, err := unix.Open(r.rootfs.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, optionError("WithRootfs", "%w", &os.PathError{Op: "open", Path: r.rootfs.dir, Err: err})
	}
	defer unix.Close(root)
	l := r.layout()
	var missing []point
	for _, dir := range l.mkdirs {
		if p, ok := missingIn(root, dir); ok {
			missing = append(missing, p)
		}
	}
	for _, file := range l.mkfiles {
		if p, ok := missingIn(root, file); ok {
			p.file = true
			missing = append(missing, p)
		}
	}
	for _, m := range l.mounts {
		if m.kind == fileMount && m.on == nil {
			dst := m.dst
			if r.writable != nil {
				dst = path.Dir(dst) // where the file itself is made
			}
			if p, ok := missingIn(root, dst); ok {
				p.file = r.writable == nil
				missing = append(missing, p)
			}
		}
	}
	return missing, nil
}

// missingIn returns how p can be made, if it does not exist.
func missingIn(root int, p string) (point, bool) {
	have := "/"
	for rest := strings.Split(p[1:], "/"); len(rest) > 0; rest = rest[1:] {
		real, _, err := realPath(root, path.Join(have, rest[0]))
		if err != nil {
			return point{path: path.Join(have, path.Join(rest...)), have: modes(root, have)}, true
		}
		have = real
	}
	return point{}, false
}

// modes is the permissions of a directory and those above it, from the top.
func modes(root int, dir string) (list []fs.FileMode) {
	for ; dir != "/"; dir = path.Dir(dir) {
		_, mode, err := realPath(root, dir)
		if err != nil {
			mode = 0o755 // it is gone again
		}
		list = append(list, mode)
	}
	slices.Reverse(list)
	return list
}

// realPath is p, which exists inside root, without symbolic links, and its
// permissions.
func realPath(root int, p string) (string, fs.FileMode, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, p, &how)
	if err != nil {
		return "", 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return "", 0, err
	}
	mode := fs.FileMode(st.Mode & 0o777)
	if st.Mode&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", 0, err
	}
	top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root))
	if err != nil {
		return "", 0, err
	}
	return path.Join("/", strings.TrimPrefix(at, top)), mode, nil
}
