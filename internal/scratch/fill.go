//go:build linux

package scratch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/spec"
)

// What an image has at a place becomes what a file system has that is mounted there, as container
// engines do with new volumes. This process copies it, before any run has the file system: it may
// read all of the layers, whoever their files belong to, and needs no mount for that. Nothing in
// the layers leads out of them (package overlay), or out of what is filled (os.Root).

// Fill implements sandbox.Scratch's Fill, for runs of the description.
func (s *Scratch) Fill(ctx context.Context, of *spec.Spec, dst string) error {
	err := s.Use(false)
	if err == nil {
		s.filling.Lock()
		defer s.filling.Unlock()
		c := copier{to: s.root, owner: &owner{-1, -1}, bytes: s.size, files: s.files}
		// Where a run has the files of a scratch with the owners that they have here.
		if n := &of.Namespaces; n.UID == 0 && n.GID == 0 && cell.WideIDs() {
			c.owner = nil
		}
		err = c.fill(ctx, of, dst)
	}
	if err != nil {
		return fmt.Errorf("sandbox: Fill: what the image has at %s can't be copied: %w", dst, err)
	}
	return nil
}

// fill copies what the image has at a place, unless there are files already. With one owner for
// all, what the run's user could not read in the image is left out.
func (c *copier) fill(ctx context.Context, of *spec.Spec, dst string) error {
	switch {
	case of.Root.Image == "":
		return nil // another root's files may be nobody's business here
	case of.Namespaces.Image.Err != nil:
		return nil // no run will start, which has the error
	}
	v, err := overlay.Open(of.Root.Rootfs.Layers)
	if err != nil {
		return err
	}
	defer v.Close()
	tree := v.Tree(dst, c.files)
	if tree == nil {
		return v.Err()
	}
	// Else files of the image have no owners of its own: they belong to this process's user.
	if n := &of.Namespaces; n.UID != 0 && cell.WideIDs() {
		c.reader = &reader{n.UID, append(slices.Clip(n.Groups), n.GID)}
		if !c.reader.mayEnter(tree.Way) {
			return nil
		}
	}
	if has, err := hasFiles(c.to); has || err != nil {
		return err
	}
	c.from, c.dir, c.exact, c.asIs, c.cancel = tree, ".", true, true, ctx
	err = c.copy()
	if errors.Is(err, fault.ErrNotCopied) {
		return nil // devices, which no run could use
	}
	if err != nil {
		err = errors.Join(err, removeAll(c.to)) // half of it is nobody's wish
	}
	return err
}

// reader is a user with groups.
type reader struct {
	uid  int
	gids []int
}

// may reports whether the permissions of a file give the user the access, bits as of others.
func (r *reader) may(mode fs.FileMode, uid, gid int, access fs.FileMode) bool {
	switch {
	case uid == r.uid:
		mode >>= 6
	case slices.Contains(r.gids, gid):
		mode >>= 3
	}
	return mode&access == access
}

// mayRead reports whether the user may copy a file.
func (r *reader) mayRead(d fs.DirEntry) (bool, error) {
	info, err := d.Info()
	if err != nil {
		return false, err
	}
	access := fs.FileMode(0o4)
	if d.IsDir() {
		access = 0o5
	}
	st := info.Sys().(*syscall.Stat_t)
	return r.may(info.Mode().Perm(), int(st.Uid), int(st.Gid), access), nil
}

// mayEnter reports whether the user may go along directories, and list the last.
func (r *reader) mayEnter(way []overlay.Dir) bool {
	for i, d := range way {
		access := fs.FileMode(0o1)
		if i == len(way)-1 {
			access = 0o5
		}
		if !r.may(d.Mode.Perm(), d.UID, d.GID, access) {
			return false
		}
	}
	return true
}

func hasFiles(dir *os.Root) (bool, error) {
	f, err := dir.Open(".")
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if err == io.EOF {
		err = nil
	}
	return len(names) > 0, err
}

// removeAll removes what is in a directory.
func removeAll(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, dir.RemoveAll(name))
	}
	return err
}

// FillDir fills a directory of the host that is empty and will be bound at the place dst of the
// image. All in it belongs to whom the directory belongs to, as a bind has one owner. Of several
// processes one does it, while the others wait.
//
// A file beside the directory, with a ~ after its name, says that the directory is being filled. If
// this process is killed meanwhile, the file stays, and FillDir fails from then on.
func FillDir(ctx context.Context, of *spec.Spec, dst, dir string) error {
	to, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	has, err := hasFiles(to)
	if err != nil {
		return err
	}
	mark := filepath.Clean(dir) + "~"
	// After the look at the files, which another process makes after its mark.
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) && (has || !isThere(&of.Root, dst)) {
		return nil
	}
	lock, err := lockMark(ctx, mark)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := fillLocked(ctx, of, dst, to, lock); err != nil {
		return fmt.Errorf("what the image has at %s can't be copied to %s: %w", dst, dir, err)
	}
	return nil
}

// isThere reports whether the image has a directory at a place, or can't be read.
func isThere(r *spec.Root, dst string) bool {
	if r.Image == "" {
		return false
	}
	v, err := overlay.Open(r.Rootfs.Layers)
	if err != nil {
		return true
	}
	defer v.Close()
	return v.Tree(dst, 0) != nil || v.Err() != nil
}

// fillLocked fills a directory while the mark is this process's. It removes the mark.
func fillLocked(ctx context.Context, of *spec.Spec, dst string, to *os.Root, mark *os.File) error {
	info, err := to.Stat(".")
	if err != nil {
		return err
	}
	state, err := mark.Stat()
	if err != nil {
		return err
	}
	has, err := hasFiles(to)
	switch {
	case err != nil:
		return err
	case has && state.Size() > 0:
		return fmt.Errorf("a process that did this was killed: look at what the directory has, and remove both it and %s", mark.Name())
	case has:
		return os.Remove(mark.Name())
	}
	if _, err := mark.WriteString("this directory is being filled\n"); err != nil {
		return err
	}
	c := copier{to: to, owner: &owner{-1, -1}, bytes: math.MaxInt64 / 2, files: math.MaxInt64 / 2}
	if st := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 {
		c.owner = &owner{int(st.Uid), int(st.Gid)}
	}
	err = c.fill(ctx, of, dst)
	if has, checkErr := hasFiles(to); err != nil && (has || checkErr != nil) {
		return err // which the mark then says, too
	}
	return errors.Join(err, os.Remove(mark.Name()))
}

// markPause is how long lockMark waits until it looks again whether another process has ended.
const markPause = 20 * time.Millisecond

// lockMark makes the file that says that a directory is being filled, or takes over that of a
// process that was killed.
func lockMark(ctx context.Context, name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(f, name) {
			return f, nil
		}
		f.Close()
		if err != nil && err != unix.EWOULDBLOCK {
			return nil, &os.PathError{Op: "flock", Path: name, Err: err}
		}
		select {
		case <-time.After(markPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// isAt reports whether a name still leads to the file: its owner may have removed it meanwhile.
func isAt(f *os.File, name string) bool {
	info, err := f.Stat()
	there, thereErr := os.Lstat(name)
	return err == nil && thereErr == nil && os.SameFile(info, there)
}
