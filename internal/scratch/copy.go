//go:build linux

package scratch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

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

	bytes, files int64 // what there is still room for
	left         []string
	leftToo      int
	times        []modified

	base       *os.File // to
	parent     *os.Root // where the last file went
	parentName string
	buffer     []byte
}

const copyBuffer = 256 << 10

// modified is the time of modification to set for a directory that was made: copying files into it
// changes that.
type modified struct {
	name string
	at   time.Time
}

// maxLeft is how many names an error has at most.
const maxLeft = 10

func (c *copier) copy() (err error) {
	_, statErr := c.to.Lstat(c.dir)
	isNew := c.forAll || statErr != nil
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
			c.remember(name, d)
		}
		return c.visit(name, d, err)
	})
	for _, m := range slices.Backward(c.times) {
		if err == nil {
			err = c.setTime(m)
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
	if c.files--; c.files < 0 {
		return fmt.Errorf("%s: more files than the scratch has room for", name)
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
		return c.link(name, to, at)
	}
	if c.distrust || makeNode(to, at, d.Type()) != nil {
		c.leaveOut(name)
	}
	return nil
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

// remember records a directory for which setTime is called once everything is in it.
func (c *copier) remember(name string, d fs.DirEntry) {
	if info, err := d.Info(); err == nil && !info.ModTime().IsZero() {
		c.times = append(c.times, modified{name, info.ModTime()})
	}
}

func (c *copier) setTime(m modified) error {
	dir, err := openBelow(c.base, path.Join(c.dir, m.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a run has moved or removed it meanwhile
	}
	if err != nil {
		return err
	}
	return errors.Join(dir.Chtimes(".", time.Time{}, m.at), dir.Close())
}

// perm returns the permission bits of a copy.
func (c *copier) perm(mode fs.FileMode) fs.FileMode {
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
	c.remember(name, d)
	if !c.exact {
		return nil
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
	perm := c.perm(info.Mode())
	out, err := to.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	if c.buffer == nil {
		c.buffer = make([]byte, copyBuffer)
	}
	// Not out itself, which would allocate a buffer for each file.
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.LimitReader(in, c.bytes+1), c.buffer)
	if c.bytes -= n; err == nil && c.bytes < 0 {
		err = fmt.Errorf("%s: more bytes than the scratch has room for", name)
	}
	if err == nil && c.exact {
		err = out.Chmod(perm)
	}
	if err == nil && !info.ModTime().IsZero() {
		err = setModified(out, info.ModTime())
	}
	return errors.Join(err, out.Close())
}

// link copies a symbolic link. If the files are not trusted, its target may have ".." only at the
// beginning, and must not go above the copy. Then it goes up from directories only, and what it can
// reach from there are directories and links of the same kind.
func (c *copier) link(name string, to *os.Root, at string) error {
	target, err := fs.ReadLink(c.from, name)
	if err == nil && c.distrust && !staysBelow(name, target) {
		err = &fs.PathError{Op: "copy", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return c.leave(name, err)
	}
	return to.Symlink(target, at)
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
