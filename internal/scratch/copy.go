//go:build linux

package scratch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
)

// copier copies a tree of files into a directory.
type copier struct {
	from fs.FS
	to   *os.Root
	dir  string // the directory in to

	exact    bool // whatever the umask
	forAll   bool // for all to read
	distrust bool // a run may have made what from has in it

	// asIs keeps hard links, and all modes except set-uid bits, also that of the directory
	// itself. In from, Sys must return a *syscall.Stat_t then.
	asIs   bool
	owner  *owner          // with asIs: of all, in place of those that from has
	reader *reader         // with asIs: what it may not read is left out, if it is not nil
	cancel context.Context // ends the copying, if it is not nil

	bytes, files int64 // what there is still room for
	left         []string
	leftToo      int
	made         []madeDir
	linked       map[fileID]string // with asIs: where files with several names are

	base       *os.File // to
	parent     *os.Root // where the last file went
	parentName string
	buffer     []byte
}

const copyBuffer = 256 << 10

// madeDir is a directory that was made. What copying files into it changes, or takes, is set at the
// end.
type madeDir struct {
	name string
	info fs.FileInfo
}

// owner is whose files are. An id of -1 is this process's: chown(2).
type owner struct{ uid, gid int }

// fileID is a file that may have several names.
type fileID struct{ dev, ino uint64 }

// maxLeft is how many names an error has at most.
const maxLeft = 10

func (c *copier) copy() (err error) {
	_, statErr := c.to.Lstat(c.dir)
	isNew := c.forAll || c.asIs || statErr != nil
	if err := c.to.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	if c.base, err = c.to.Open("."); err != nil {
		return err
	}
	defer c.base.Close()
	c.from = anyName(c.from)
	err = fs.WalkDir(c.from, ".", func(name string, d fs.DirEntry, err error) error {
		if name == "." && err == nil && isNew {
			if err := c.remember(name, d); err != nil {
				return err
			}
		}
		return c.visit(name, d, err)
	})
	for _, d := range slices.Backward(c.made) {
		if err == nil {
			err = c.finish(d)
		}
	}
	if c.parent != nil {
		err = errors.Join(err, c.parent.Close())
	}
	if err != nil {
		return err
	}
	switch {
	case c.leftToo > 0:
		return fmt.Errorf("%w: %q and %d more", fault.ErrNotCopied, c.left, c.leftToo)
	case len(c.left) > 0:
		return fmt.Errorf("%w: %q", fault.ErrNotCopied, c.left)
	}
	return nil
}

func (c *copier) visit(name string, d fs.DirEntry, err error) error {
	if err != nil {
		return c.leave(name, err)
	}
	if c.cancel != nil && c.cancel.Err() != nil {
		return context.Cause(c.cancel)
	}
	if name == "." {
		return nil // copy has made it
	}
	if !canName(c.from, name) {
		c.leaveOut(name)
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	if c.reader != nil {
		switch may, err := c.reader.mayRead(d); {
		case err != nil:
			return err
		case !may && d.IsDir():
			return fs.SkipDir
		case !may:
			return nil
		}
	}
	if c.files--; c.files < 0 {
		return fmt.Errorf("%s: more files than the scratch has room for: %w", name, unix.ENOSPC)
	}
	to, at, err := c.place(name)
	if err != nil {
		return err
	}
	switch d.Type() {
	case fs.ModeDir:
		return c.mkdir(name, to, at, d)
	case 0:
		return c.file(name, to, at)
	case fs.ModeSymlink:
		return c.link(name, to, at, d)
	}
	switch err := c.node(to, at, d); {
	case errors.Is(err, fs.ErrInvalid): // a device
		c.leaveOut(name)
	case err != nil:
		return err
	}
	return nil
}

func (c *copier) node(to *os.Root, at string, d fs.DirEntry) error {
	if c.distrust {
		return fs.ErrInvalid
	}
	if err := makeNode(to, at, d.Type()); err != nil || !c.asIs {
		return err
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	return errors.Join(c.own(to, at, info), to.Chmod(at, info.Mode().Perm()))
}

// own gives a copy its owner, without following links.
func (c *copier) own(to *os.Root, at string, info fs.FileInfo) error {
	if is := c.ownerOf(info); is != nil {
		return to.Lchown(at, is.uid, is.gid)
	}
	return nil
}

// ownerOf returns who a copy is given to, nil if that is not asked for.
func (c *copier) ownerOf(info fs.FileInfo) *owner {
	if c.owner != nil || !c.asIs {
		return c.owner
	}
	st := info.Sys().(*syscall.Stat_t)
	return &owner{int(st.Uid), int(st.Gid)}
}

// place returns where a copy goes: a directory, which is kept for the other files in it, and the
// name in it.
func (c *copier) place(name string) (*os.Root, string, error) {
	dir := path.Join(c.dir, path.Dir(name))
	if c.parent == nil || c.parentName != dir {
		next, err := openBelow(c.base, dir)
		if err != nil {
			return nil, "", err
		}
		if c.parent != nil {
			c.parent.Close()
		}
		c.parent, c.parentName = next, dir
	}
	return c.parent, path.Base(name), nil
}

// leave leaves out what can't be read if the files are not trusted; else it returns err.
func (c *copier) leave(name string, err error) error {
	if !c.distrust || name == "." {
		return err
	}
	c.leaveOut(name)
	return nil
}

func (c *copier) leaveOut(name string) {
	if len(c.left) == maxLeft {
		c.leftToo++
		return
	}
	c.left = append(c.left, name[:min(len(name), 200)])
}

// remember records a directory for which finish is called once everything is in it.
func (c *copier) remember(name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err == nil && (c.asIs || !info.ModTime().IsZero()) {
		c.made = append(c.made, madeDir{name, info})
	}
	if c.asIs {
		return err
	}
	return nil
}

func (c *copier) finish(d madeDir) (err error) {
	dir, err := openBelow(c.base, path.Join(c.dir, d.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a run has moved or removed it meanwhile
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if at := d.info.ModTime(); !at.IsZero() {
		err = dir.Chtimes(".", time.Time{}, at)
	}
	if err == nil && c.asIs {
		if err = c.own(dir, ".", d.info); err == nil {
			err = dir.Chmod(".", d.info.Mode()&(fs.ModePerm|fs.ModeSticky|fs.ModeSetgid))
		}
	}
	return err
}

// perm returns the permission bits of a copy.
func (c *copier) perm(mode fs.FileMode) fs.FileMode {
	switch {
	case c.asIs && mode.IsDir():
		return 0o700 // finish sets its own
	case c.asIs:
		return mode.Perm()
	}
	perm := mode.Perm() | 0o600
	if mode.IsDir() {
		perm |= 0o100
	}
	if c.forAll {
		perm = 0o644
		if mode.IsDir() || mode&0o111 != 0 {
			perm = 0o755
		}
	}
	return perm
}

func (c *copier) mkdir(name string, to *os.Root, at string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return c.leave(name, err)
	}
	perm := c.perm(info.Mode())
	switch err = to.Mkdir(at, perm); {
	case errors.Is(err, fs.ErrExist):
		if have, statErr := to.Lstat(at); statErr != nil || !have.IsDir() {
			return err
		}
		return nil
	case err != nil:
		return err
	}
	if err := c.remember(name, d); err != nil || !c.exact || c.asIs {
		return err
	}
	return to.Chmod(at, perm)
}

func (c *copier) file(name string, to *os.Root, at string) error {
	in, err := c.from.Open(name)
	if err != nil {
		return c.leave(name, err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() { // it was regular when it was listed
		err = &fs.PathError{Op: "copy", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return c.leave(name, err)
	}
	if done, err := c.again(name, info); done || err != nil {
		return err
	}
	perm := c.perm(info.Mode())
	out, err := to.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	if c.buffer == nil {
		c.buffer = make([]byte, copyBuffer)
	}
	// Not out itself, which would allocate a buffer for each file.
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.LimitReader(cancelled{in, c.cancel}, c.bytes+1), c.buffer)
	if c.bytes -= n; err == nil && c.bytes < 0 {
		err = fmt.Errorf("%s: more bytes than the scratch has room for: %w", name, unix.ENOSPC)
	}
	if is := c.ownerOf(info); err == nil && is != nil {
		err = out.Chown(is.uid, is.gid)
	}
	if err == nil && c.exact {
		err = out.Chmod(perm)
	}
	if err == nil && !info.ModTime().IsZero() {
		err = setModified(out, info.ModTime())
	}
	return renamed(errors.Join(err, out.Close()), name)
}

// again makes another name of a file that was copied already, and reports whether it was.
func (c *copier) again(name string, info fs.FileInfo) (done bool, err error) {
	if !c.asIs {
		return false, nil
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Nlink < 2 {
		return false, nil
	}
	id := fileID{uint64(st.Dev), st.Ino}
	if first, ok := c.linked[id]; ok {
		err := c.to.Link(path.Join(c.dir, first), path.Join(c.dir, name))
		if !errors.Is(err, unix.EMLINK) {
			return true, err
		}
	}
	if c.linked == nil {
		c.linked = map[fileID]string{}
	}
	c.linked[id] = name
	return false, nil
}

// cancelled is a reader that fails once the context has ended.
type cancelled struct {
	io.Reader
	ctx context.Context
}

func (r cancelled) Read(b []byte) (int, error) {
	if r.ctx != nil && r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(b)
}

// link copies a symbolic link. If the files are not trusted, its target may have ".." only at the
// beginning, and must not go above the copy. Then it goes up from directories only, and what it can
// reach from there are directories and links of the same kind.
func (c *copier) link(name string, to *os.Root, at string, d fs.DirEntry) error {
	target, err := fs.ReadLink(c.from, name)
	if err == nil && c.distrust && !staysBelow(name, target) {
		err = &fs.PathError{Op: "copy", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return c.leave(name, err)
	}
	if err := to.Symlink(target, at); err != nil || !c.asIs {
		return err
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	return c.own(to, at, info)
}

// staysBelow reports whether the link name can't lead out of the tree that it is in, whatever else
// is in that tree.
func staysBelow(name, target string) bool {
	if target == "" || path.IsAbs(target) {
		return false
	}
	above := strings.Count(name, "/")
	down := false
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if above--; down || above < 0 {
				return false
			}
		default:
			down = true
		}
	}
	return true
}
