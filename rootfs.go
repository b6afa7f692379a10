package sandbox

import (
	"cmp"
	"io/fs"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/spec"
)

// Rootfs is what a run has as its root file system: HostRootfs, EmptyRootfs, DirRootfs or
// LayersRootfs.
type Rootfs struct{ is spec.Rootfs }

// HostRootfs shows the host's programs and libraries, read-only: /usr and /bin, /sbin, /lib*. Of
// /etc it shows, as copies, what packages installed or generated (configuration of programs,
// certificates, alternatives, the loader's cache, the time zone), as far as everybody may read it
// and it does not look like a secret, and of /var what a few programs generate, such as fonts and
// TeX's formats. passwd, group, hosts, hostname, resolv.conf and nsswitch.conf are made up. Nothing
// else of the host is visible: no /home, /root, /opt, /run. The default. docs/HOSTROOTFS.md has the
// rules.
//
// In every root /sys has the files by which programs count CPUs, as this machine has them, and the
// run's own cgroup, read-only (docs/CGROUPS.md), unless an option puts something there, or /sys is
// the only mount point that a DirRootfs lacks.
func HostRootfs() Rootfs { return Rootfs{} }

// EmptyRootfs shows nothing of the host: the root has /dev, /proc, /sys, the made-up part of
// HostRootfs's /etc, the writable file systems and what options add. A statically linked program,
// such as one that Go makes with CGO_ENABLED=0, needs no more than a bind of itself.
func EmptyRootfs() Rootfs { return Rootfs{spec.Rootfs{Parts: spec.Nothing}} }

// DirRootfs uses a directory of the host as the root, read-only unless WithWritableRoot is set; the
// directory itself is never written to. Files keep their permissions and belong, inside, to nobody:
// what others may not read or execute, the run may not. Mount points that the directory lacks are
// added on a layer in memory above it, which needs Linux 5.11. /etc/hosts, hostname and resolv.conf
// are the run's own, as in LayersRootfs and in containers.
func DirRootfs(dir string) Rootfs {
	return Rootfs{spec.Rootfs{Layers: []string{dir}}}
}

// LayersRootfs uses directories of the host as the root, one on top of the other, the lowest first,
// as the layers of an image are: what a directory has hides what those below it have at the same
// place, except for directories, which are merged. A character device 0:0 hides what is below it,
// and a directory hides all that is below it if it has the extended attribute user.overlay.opaque=y
// (Linux's Documentation/filesystems/overlayfs.rst). None of them is ever written to; with
// WithWritableRoot changes go to memory.
//
// Files keep their owners: what belongs to user 33 in a layer belongs to user 33 in the run, and
// what belongs to root belongs to root, which is the run's user with WithUser(0, 0). That takes
// root, Linux 5.19, a file system that supports idmapped mounts (as WithBind) and ids below 65536;
// elsewhere files belong, inside, to nobody, as with DirRootfs. With WithoutUserNamespace they
// always keep them. Up to 64 layers; more than one needs Linux 5.11, and so does a mount point that
// they lack. Run reports what is wrong with them.
func LayersRootfs(lower ...string) Rootfs {
	return Rootfs{spec.Rootfs{Layers: slices.Clone(lower), KeepsIDs: true}}
}

func (r Rootfs) String() string {
	if len(r.is.Layers) == 0 {
		return [...]string{"host", "empty", "own program"}[r.is.Parts]
	}
	return strings.Join(r.is.Layers, " below ")
}

// WithRootfs sets the root file system. Default: HostRootfs().
func WithRootfs(rootfs Rootfs) Option {
	return func(c *spec.Spec) {
		r := &c.Root
		if r.IfCan { // what an image had asked for goes too
			r.Writable, r.IfCan = 0, false
		}
		r.Rootfs, r.Image, r.Dirs = rootfs.is, "", nil
	}
}

// WithBind shows the host's file or directory src at dst, writable. Inside, its files belong to the
// run's user if, outside, they belong to the owner of src, and the other way round: what the run
// creates belongs to the owner of src. As root that needs a file system that supports idmapped
// mounts (ext4, xfs, btrfs from 5.12-5.15, tmpfs from 6.3); for an ordinary user, src must be the
// caller's own. Set-uid bits and device nodes have no effect inside. A missing dst is created if
// the root is in memory. The host must not trust what a run leaves there: links, and set-uid
// programs of the owner of src. With WithoutUserNamespace files keep their owners. Several calls
// add up.
func WithBind(src, dst string) Option { return withMount(dst, spec.Bind{Path: src}) }

// WithReadOnlyBind shows the host's file or directory src at dst, read-only. Owners are mapped as
// with WithBind where the file system supports it; elsewhere the run may read what others may read.
// Only files are read-only: the run may still connect to a socket in it, or write to a named pipe,
// if its permissions allow.
func WithReadOnlyBind(src, dst string) Option {
	return withMount(dst, spec.Bind{Path: src, ReadOnly: true})
}

// WithTmpfs mounts an empty file system at dst, which lives in memory and belongs to the run's
// user. It takes up to the given number of bytes, and one file for each 4 KiB of them, plus 256. It
// replaces the default tmpfs at /tmp, /dev/shm or /home/sandbox (256 MiB each). Default, for 0
// bytes: 256 MiB. Several calls add up.
func WithTmpfs(dst string, bytes int64) Option {
	return withMount(dst, spec.Tmpfs{Size: cmp.Or(bytes, spec.DefaultTmpfs)})
}

// WithFile puts a file with the given content and permission bits at dst. It belongs to the run's
// user, and is read-only unless it lies on a tmpfs or a writable root. Missing directories above it
// are made; on a tmpfs they belong to the user too. Up to 1 MiB for all files together. Several
// calls add up; a later one replaces an earlier one's file at the same place.
//
// The file's content and mode belong to the command, and so does a whole file on a tmpfs, such as
// /tmp: sandboxes that differ only in these share the runs of WithPrepared. (Of more than 64 files
// elsewhere, this holds for 64.)
func WithFile(dst string, data []byte, mode fs.FileMode) Option {
	file := spec.File{Data: string(data), Mode: mode}
	return func(c *spec.Spec) { c.Root.AddFile(dst, file) }
}

// WithWritableRoot lets the run change its root: changes go to memory, up to the given number of
// bytes, and are gone with the run. Files that belong, outside, to the owner of the root (for
// HostRootfs: to root) can be changed by the run's user if the kernel (5.19) and the file system
// allow idmapped mounts below an overlay and the caller is root, except with WithoutUserNamespace;
// otherwise they keep their protection, and only new files can be made, in directories that the
// run's user owns, such as /. Default, and 0: read-only.
func WithWritableRoot(bytes int64) Option {
	return func(c *spec.Spec) { c.Root.SetWritable(bytes) }
}

// WithScratchRoot lets the run change its root like WithWritableRoot, but the changes go to the
// scratch, as far as it has room. They stay there for the next run that has the scratch for its
// root, one run at a time, and for RootChanges. A scratch that was mounted with WithScratch, or
// that files were copied into, can't take the changes of a root, and the other way round. It can't
// be combined with WithPrepared.
//
// It needs root, Linux 6.3 (idmapped tmpfs; 5.19 for a scratch on disk), and a user namespace with
// ids of its own for each run; else a run fails with a *SetupError.
func WithScratchRoot(s *Scratch) Option {
	return func(c *spec.Spec) {
		c.Root.SetUpper(nil, 0)
		if s.made() {
			c.Root.SetUpper(s.impl, s.impl.Size())
		}
	}
}

func withMount(dst string, source spec.Source) Option {
	return func(c *spec.Spec) { c.Root.Mounts = append(c.Root.Mounts, spec.Mount{Dst: dst, Source: source}) }
}
