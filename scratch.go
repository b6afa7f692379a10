package sandbox

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Scratch is a file system of its own, in memory or on disk, that runs share, one after the other
// or at once: the way to get files into a run and out of it. Only this process has it, and the runs
// that are given it, with WithScratch, WithReadOnlyScratch or WithScratchRoot. It is safe for
// concurrent use, even while runs change it.
type Scratch struct{ impl *scratchImpl }

// NewScratch makes an empty file system that takes up to the given number of bytes, and one file
// for each 4 KiB of them, plus 256. Memory is used as files are written, and counts towards the
// limit of the run that writes them, even after its end. It is given back once the scratch is
// closed, or garbage collected, and the runs that have it are over.
//
// It needs Linux 5.12, and root or a machine that lets ordinary users make user namespaces. For an
// ordinary user each scratch takes a small process.
func NewScratch(bytes int64) (*Scratch, error) {
	if bytes <= 0 {
		return nil, fault.Option("NewScratch", "%d is not a positive number of bytes", bytes)
	}
	impl, err := newScratch(bytes)
	if err != nil {
		return nil, err
	}
	return &Scratch{impl}, nil
}

// NewDiskScratch makes an empty file system on disk, in a file without a name in the directory dir
// of the host, which takes up to the given number of bytes there, at least a MiB. It is for what is
// too large for memory: what a run writes to it counts towards the run's memory only as a cache,
// which the kernel gives up when memory is short. With WithScratch it takes the place of /tmp or of
// the home directory, and with WithScratchRoot of the memory that the changes of a root take.
//
// The file takes room on the disk as files are written, and gives it back as they are removed: the
// size is a limit, and no promise that the disk has so much left. About 2 % of it are the file
// system's own (ext4; 5 % of the smallest), and there is room for one file for each 16 KiB. Nothing
// of it outlives this process, so a run's fsync does not wait for the disk to have written. If the
// disk is full before the size is reached, what has been written may be lost, and the file system
// becomes read-only. It is given back as for NewScratch, which takes as long as the disk takes to
// write what is not on it yet, and no file, mount or loop device is left, however this process
// ends.
//
// It needs root, Linux 5.12, loop devices and mkfs.ext4 (package e2fsprogs); else the error is a
// *SetupError. An ordinary user may mount no disk: bind a directory with WithBind, under a quota of
// its file system if that has one. WithScratch of it needs no idmapped tmpfs, only Linux 5.12, and
// WithScratchRoot 5.19.
func NewDiskScratch(dir string, bytes int64) (*Scratch, error) {
	if bytes < MiB {
		return nil, fault.Option("NewDiskScratch", "%d bytes are too few for a file system: ask for 1 MiB at least", bytes)
	}
	impl, err := newDiskScratch(dir, bytes)
	if err != nil {
		return nil, err
	}
	return &Scratch{impl}, nil
}

// Close gives up the scratch. Runs that have it keep it; no other run can be given it.
func (s *Scratch) Close() error {
	if !s.made() {
		return notMade("Close")
	}
	return s.impl.Close()
}

// CopyIn copies all of fsys into the directory dir of the scratch, a name as in fs.FS, "." for its
// root. The directory is made if it is missing. Files belong to the runs' user and keep their
// permission bits; their owner may always read and write them. Symbolic links are copied as they
// are, named pipes and sockets become new ones, and regular files and directories keep their
// modification times. A file that is there already is never replaced: CopyIn stops there
// (fs.ErrExist), and when the scratch is full (syscall.ENOSPC), and what was copied stays. What
// can't be copied is left out, and then errors.Is(err, ErrNotCopied) holds: devices, and names that
// are not UTF-8, unless fsys is an os.DirFS.
func (s *Scratch) CopyIn(fsys fs.FS, dir string) error {
	if !s.made() {
		return notMade("CopyIn")
	}
	return s.impl.CopyIn(fsys, dir)
}

// Fill copies the directory dst of the sandbox's image (module image) into the scratch, if the
// scratch is empty, as container engines fill new volumes. The scratch is then for runs of that
// sandbox, with WithScratch at dst. Symbolic links at dst are followed inside the image. Fill does
// nothing if the sandbox has no image, or the image has no directory at dst. It needs no privilege.
//
// Modes, times and hard links are kept, also those of dst itself, except the set-uid bit, and the
// set-gid bit of files. Owners are kept if this process is root and the sandbox's user is root
// (WithUser(0, 0)). Otherwise everything belongs to the runs' user, and files that this user may
// not read in the image are left out. An ordinary user's images have no owners, so there nothing is
// left out for that. Devices and extended attributes are never copied.
//
// If there is not enough room (syscall.ENOSPC), if something can't be read, or if ctx ends before
// all is copied, the scratch stays empty. Of several calls at once one copies, and the others wait.
func (s *Scratch) Fill(ctx context.Context, of *Sandbox, dst string) error {
	if !s.made() {
		return notMade("Fill")
	}
	return s.impl.Fill(ctx, &of.it().Spec, dst)
}

// ErrNotCopied means that CopyIn or CopyOut left something out. Everything else was copied.
var ErrNotCopied = fault.ErrNotCopied

// CopyOut copies all that is in the scratch into a directory of the host, which is made if it is
// missing. Files belong to this process's user, with the permission bits that they have and the
// umask leaves, and the modification times. A file that is there already is never replaced: CopyOut
// stops there (fs.ErrExist), and what was copied stays. What runs changed in their root
// (WithScratchRoot) is in the scratch in a form of the kernel's own: to get files of it, have a run
// of that sandbox write them to another scratch, or to its output by tar.
//
// What a run left can't be trusted. Symbolic links are copied only if they can't lead out of the
// directory. Other links, sockets and named pipes, files with holes that seem larger than the
// scratch, names that are longer than a path may be, what this process may not read, and what a run
// holds a lease of, are left out, and then errors.Is(err, ErrNotCopied) holds. CopyOut never writes
// more than the scratch has room for: if files with holes would together take more, it stops with
// an error.
func (s *Scratch) CopyOut(dir string) error {
	if !s.made() {
		return notMade("CopyOut")
	}
	return s.impl.CopyOut(dir)
}

// FS returns a file system that shows what is in the scratch at the moment, by names relative to
// its root, wherever a run has it mounted. It implements fs.ReadDirFS, fs.StatFS, fs.ReadLinkFS and
// fs.SubFS. Symbolic links are followed within the scratch only, and nothing is opened but regular
// files and directories. A file shows what it had in it when it was opened; one that is larger than
// the scratch, which then has holes, can't be opened, nor can one of which a run holds a lease
// (syscall.EWOULDBLOCK), for which it needs another seccomp filter than the default one. Nor can a
// directory be listed at once, or all be copied by CopyOut and WithFS, with more names than one for
// each 4 KiB of the scratch, plus 256: on a disk, hard links take less.
func (s *Scratch) FS() fs.FS {
	if !s.made() {
		return noFS{}
	}
	return s.impl.FS()
}

// WithScratch mounts the scratch at dst, writable. Its files belong to the run's user. It replaces
// the default file system at /tmp, /dev/shm or /home/sandbox. Several runs may have it at once,
// whatever their user.
//
// If this process is root, a run as root (WithUser(0, 0)) may give files to other users, as far as
// it has the capabilities for that (CAP_CHOWN, CAP_SETUID), and later runs as root find them so.
// For a run with another user these are nobody's, and the rest is its own.
//
// As root it needs Linux 6.3 (idmapped tmpfs; before that, a run fails with a *SetupError), or 5.12
// for one on disk, and can't be combined with WithoutUserNamespace.
func WithScratch(dst string, s *Scratch) Option {
	return withMount(dst, spec.Scratch{From: scratchOf(s)})
}

// WithReadOnlyScratch mounts the scratch at dst, read-only. Before Linux 6.3 its files belong to
// nobody if this process is root, and the run may read what others may read.
func WithReadOnlyScratch(dst string, s *Scratch) Option {
	return withMount(dst, spec.Scratch{From: scratchOf(s), ReadOnly: true})
}

// WithFS shows the files of fsys at dst, read-only, for all to read; what anybody may execute
// there, all may. The files keep their modification times, and are copied to a Scratch of their
// size when the first run needs them, and kept there for all runs of sandboxes that have this
// option: later changes of fsys have no effect. An embed.FS, an fs.Sub of it or an os.DirFS will
// do, and so will a Scratch's FS, unless its files, with their holes, are more than the Scratch has
// room for. Run fails if a file can't be read. It needs Linux 5.12.
func WithFS(dst string, fsys fs.FS) Option {
	if fsys == nil {
		return withMount(dst, spec.FS{})
	}
	return withMount(dst, spec.FS{From: newFiles(fsys)})
}

// scratchOf returns what is behind the scratch, or a nil interface if NewScratch did not make it.
func scratchOf(s *Scratch) any {
	if !s.made() {
		return nil
	}
	return s.impl
}

// made reports whether NewScratch made the scratch.
func (s *Scratch) made() bool { return s != nil && s.impl != nil }

// notMade is the error of a method of a scratch that NewScratch did not make.
func notMade(method string) error {
	return fmt.Errorf("sandbox: %s: the scratch was not made by NewScratch: look at the error of that", method)
}

// noFS is the file system of such a scratch.
type noFS struct{}

func (noFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: notMade("FS")}
}
