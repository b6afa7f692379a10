package sandbox

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// Rootfs is what a run has as its root file system: HostRootfs, EmptyRootfs, DirRootfs or LayersRootfs.
type Rootfs struct {
	layers   []string // directories, the lowest first; none is a root in memory, of parts of the host
	keepsIDs bool     // files of layers keep their owners
	parts    parts
}

// parts is what of the host a root in memory shows.
type parts int

const (
	programs   parts = iota // and libraries: HostRootfs
	nothing                 // EmptyRootfs
	ownProgram              // the libraries of this process
)

// HostRootfs shows the host's programs and libraries, read-only: /usr and /bin, /sbin, /lib*. Of
// /etc it shows, as copies, what packages installed or generated (configuration of programs,
// certificates, alternatives, the loader's cache, the time zone), as far as everybody may read it
// and it does not look like a secret, and of /var what a few programs generate, such as fonts and
// TeX's formats. passwd, group, hosts, hostname, resolv.conf and nsswitch.conf are made up. Nothing
// else of the host is visible: no /home, /root, /opt, /run. The default. docs/HOSTROOTFS.md has the
// rules.
//
// In every root /sys has what programs count CPUs by, as this machine's has it, and the run's own
// cgroup, read-only (docs/CGROUPS.md), unless an option puts something there, or a DirRootfs lacks
// no other mount point.
func HostRootfs() Rootfs { return Rootfs{} }

// EmptyRootfs shows nothing of the host: the root has /dev, /proc, /sys, the made-up part of
// HostRootfs's /etc, the writable file systems and what options add. A statically linked program,
// such as one that Go makes with CGO_ENABLED=0, needs no more than a bind of itself.
func EmptyRootfs() Rootfs { return Rootfs{parts: nothing} }

// DirRootfs uses a directory of the host as the root, read-only unless
// WithWritableRoot is set; the directory itself is never written to. Files keep
// their permissions and belong, inside, to nobody: what others may not read or
// execute, the run may not. Mount points that the directory lacks are added on
// a layer of memory above it, which needs Linux 5.11. /etc/hosts, hostname and
// resolv.conf are the run's own, as in LayersRootfs and in containers.
func DirRootfs(dir string) Rootfs {
	return Rootfs{layers: []string{dir}}
}

// LayersRootfs uses directories of the host as the root, one on top of the other, the lowest first, as the layers of an image are:
// what a directory has hides what those below it have at the same place, but for directories, which are merged. A character device
// 0:0 hides what is below it, and so does all of a directory with the extended attribute user.overlay.opaque=y (Linux's
// Documentation/filesystems/overlayfs.rst). None of them is ever written to; with WithWritableRoot changes go to memory.
//
// Files keep their owners: what belongs to user 33 in a layer belongs to user 33 in the run, and what belongs to root, to root, whom
// WithUser(0, 0) makes the run's user. That takes root, Linux 5.19, a file system that supports idmapped mounts (as WithBind) and
// ids below 65536; elsewhere files belong, inside, to nobody, as with DirRootfs. With WithoutUserNamespace they always
// keep them. Up to 64 layers; more than one needs Linux 5.11, as a mount point that they lack does. What is wrong with them is an error of Run.
func LayersRootfs(lower ...string) Rootfs {
	return Rootfs{layers: slices.Clone(lower), keepsIDs: true}
}

// maxLayers keeps a run's descriptors, and the mount option that names its layers, within what each may have.
const maxLayers = 64

func (r Rootfs) same(o Rootfs) bool {
	return slices.Equal(r.layers, o.layers) && r.keepsIDs == o.keepsIDs && r.parts == o.parts
}

func (r Rootfs) String() string {
	if len(r.layers) == 0 {
		return [...]string{"host", "empty", "own program"}[r.parts]
	}
	return strings.Join(r.layers, " below ")
}

func (r Rootfs) check() (errs []error) {
	switch {
	case r.keepsIDs && len(r.layers) == 0:
		errs = append(errs, errors.New("LayersRootfs: no directory is given"))
	case len(r.layers) > maxLayers:
		errs = append(errs, fmt.Errorf("LayersRootfs: %d layers, at most %d are possible", len(r.layers), maxLayers))
	}
	seen := map[string]bool{}
	for _, dir := range r.layers {
		if err := checkPath(dir); err != nil {
			errs = append(errs, err)
		} else if dir = path.Clean(dir); seen[dir] {
			errs = append(errs, fmt.Errorf("LayersRootfs: %s is given twice", dir))
		}
		seen[dir] = true
	}
	return errs
}

type rootConfig struct {
	rootfs   Rootfs
	mounts   []mount
	writable *int64
	upper    *Scratch // takes the changes of a writable root, nil for a file system of the run's own
	hasUpper bool     // it was given, if only a nil one
	ofImage  string   // the image that the root is, for errors
	ifCan    bool     // writable is an image's: where the kernel can do it
	dirs     []string // that are made for the run's user where the root lacks them
	noSys    bool     // there is no place for /sys
}

// subject is what errors about the root name.
func (r *rootConfig) subject() subject { return subject{"WithRootfs", r.ofImage} }

type mountKind int

const (
	bindMount mountKind = iota
	readOnlyBindMount
	scratchMount
	readOnlyScratchMount
	fsMount
	tmpfsMount
	fileMount
)

func (k mountKind) option() string {
	return [...]string{"WithBind", "WithReadOnlyBind", "WithScratch", "WithReadOnlyScratch", "WithFS", "WithTmpfs", "WithFile"}[k]
}

// isBind tells whether a file or directory of the host is mounted.
func (k mountKind) isBind() bool { return k <= readOnlyBindMount }

// isGiven tells whether what is mounted accompanies the run's program.
func (k mountKind) isGiven() bool { return k <= fsMount }

// mount is one thing that an option puts into the root.
type mount struct {
	kind mountKind
	src  string // of a bind
	file bool   // src is no directory: see withSources
	from scratchSource
	dst  string
	size int64 // of a tmpfs
	data []byte
	mode fs.FileMode
}

// same reports whether two mounts are the same by what options say: file is not among it.
func (m mount) same(o mount) bool {
	return m.kind == o.kind && m.src == o.src && m.from == o.from && m.dst == o.dst && m.size == o.size && m.mode == o.mode && bytes.Equal(m.data, o.data)
}

// what names the source of what accompanies the run's program.
func (m *mount) what() string {
	switch m.kind {
	case bindMount, readOnlyBindMount:
		return "bind of " + m.src
	case fsMount:
		return "files of WithFS"
	}
	return "scratch"
}

// defaultTmpfs is the size of each writable file system that a run has without
// asking.
const defaultTmpfs = 256 * MiB

// WithRootfs sets the root file system. Default: HostRootfs().
func WithRootfs(rootfs Rootfs) Option {
	return func(c *config) {
		r := &c.root
		if r.ifCan { // what an image had asked for goes with it
			r.writable, r.ifCan = nil, false
		}
		r.rootfs, r.ofImage, r.dirs = rootfs, "", nil
	}
}

// WithBind shows the host's file or directory src at dst, writable. Inside, its
// files belong to the run's user if, outside, they belong to the owner of src,
// and the other way round: what the run creates belongs to the owner of src.
// As root that needs a file system that supports idmapped mounts (ext4, xfs,
// btrfs from 5.12-5.15, tmpfs from 6.3); rootless, src has to be the caller's own. Set-uid
// bits and device nodes have no effect inside. A missing dst is created where
// the root is in memory. What a run leaves there is the host's to distrust: links, and set-uid
// programs of the owner of src. With WithoutUserNamespace files keep their owners. Several calls add up.
func WithBind(src, dst string) Option { return withMount(mount{kind: bindMount, src: src, dst: dst}) }

// WithReadOnlyBind shows the host's file or directory src at dst, read-only.
// Owners are mapped as with WithBind where the file system supports it;
// elsewhere the run may read what others may read. Read-only are files; to a socket or named pipe in it the run may
// still connect or write, if its permissions allow.
func WithReadOnlyBind(src, dst string) Option {
	return withMount(mount{kind: readOnlyBindMount, src: src, dst: dst})
}

// WithTmpfs mounts an empty file system at dst, which lives in memory and belongs to the
// run's user. It takes up to the given number of bytes, and one file for each 4 KiB
// of them, plus 256. It replaces the default one at /tmp, /dev/shm or /home/sandbox
// (256 MiB each). Default, for 0 bytes: 256 MiB. Several calls add up.
func WithTmpfs(dst string, bytes int64) Option {
	return withMount(mount{kind: tmpfsMount, dst: dst, size: cmp.Or(bytes, defaultTmpfs)})
}

// WithFile puts a file with the given content and permission bits at dst. It
// belongs to the run's user, and is read-only unless it lies on a tmpfs or a
// writable root. Missing directories above it are made, on a tmpfs the user's. Up
// to 1 MiB for all files together. Several calls add up; a later one replaces an
// earlier one's file at the same place.
//
// Its content and mode go with the command, and a file on a tmpfs, such as /tmp, as
// a whole: sandboxes that differ only in that share the runs of WithPrepared. (Of more
// than 64 files elsewhere, the first 64 do so.)
func WithFile(dst string, data []byte, mode fs.FileMode) Option {
	file := mount{kind: fileMount, dst: dst, data: slices.Clone(data), mode: mode}
	return func(c *config) {
		others := slices.DeleteFunc(slices.Clone(c.root.mounts), func(m mount) bool {
			return m.kind == fileMount && path.Clean(m.dst) == path.Clean(dst)
		})
		c.root.mounts = append(others, file)
	}
}

// WithWritableRoot lets the run change its root: changes go to memory, up to the
// given number of bytes, and are gone with the run. Files that belong, outside,
// to the owner of the root (for HostRootfs: to root) are the run's user's to
// change, where the kernel (5.19) and the file system allow idmapped mounts below an
// overlay and the caller is root, but for WithoutUserNamespace; elsewhere they keep their protection and
// only new files can be made, in directories that the run's user owns, such as /.
// Default, and 0: read-only.
func WithWritableRoot(bytes int64) Option {
	return func(c *config) {
		c.root.writable, c.root.upper, c.root.hasUpper, c.root.ifCan = limit(bytes), nil, false, false
	}
}

// WithScratchRoot is WithWritableRoot with changes that go to the scratch, as far as it has room, and stay there: for the next run that has it for its root, one at a
// time, and for RootChanges to tell. A scratch that was mounted with WithScratch, or that files were copied into, can't be a root's, and the other way round.
// Not with WithPrepared.
//
// It needs root, Linux 6.3 (idmapped tmpfs), and a user namespace with ids of its own for each run; else a run fails with a *SetupError.
func WithScratchRoot(s *Scratch) Option {
	return func(c *config) {
		c.root.writable, c.root.upper, c.root.hasUpper, c.root.ifCan = new(int64), s, true, false
		if scratchOf(s) != nil {
			*c.root.writable = s.size
		}
	}
}

func withMount(m mount) Option {
	return func(c *config) { c.root.mounts = append(c.root.mounts, m) }
}

// maxFiles and maxBinds keep a run's program within one message.
const (
	maxFileBytes = MiB
	maxBinds     = 100
)

func (r *rootConfig) check() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, optionError(option, format, args...))
	}
	for _, err := range r.rootfs.check() {
		errs = append(errs, r.subject().wrong("%w", err))
	}
	if r.hasUpper && scratchOf(r.upper) == nil {
		bad("WithScratchRoot", "the scratch was not made by NewScratch")
	} else if r.writable != nil && *r.writable <= 0 {
		bad("WithWritableRoot", "%d is not a positive number of bytes", *r.writable)
	}
	seen := map[string]mount{}
	bytes, binds := 0, 0
	for _, m := range r.mounts {
		if err := m.check(); err != nil {
			bad(m.kind.option(), "%w", err)
			continue
		}
		dst := path.Clean(m.dst)
		if other, ok := seen[dst]; ok {
			bad(m.kind.option(), "%s: hides what %s puts there", dst, other.kind.option())
		}
		seen[dst] = m
		bytes += len(m.data)
		if m.kind.isGiven() {
			binds++
		}
	}
	if bytes > maxFileBytes {
		bad("WithFile", "%d bytes together, at most %d are possible: use WithReadOnlyBind", bytes, maxFileBytes)
	}
	if binds > maxBinds {
		bad("WithBind", "%d binds, at most %d are possible", binds, maxBinds)
	}
	return append(errs, r.checkFiles(seen)...)
}

// checkFiles refuses files below other files and inside binds, where they
// would be written to the host.
func (r *rootConfig) checkFiles(all map[string]mount) (errs []error) {
	for _, dst := range slices.Sorted(maps.Keys(all)) {
		m := all[dst]
		for dir := path.Dir(dst); dir != "/"; dir = path.Dir(dir) {
			switch above, ok := all[dir]; {
			case !ok:
				continue
			case above.kind == fileMount:
				errs = append(errs, optionError(m.kind.option(), "%s: lies below the file %s", dst, dir))
			case m.kind == fileMount && above.kind.isGiven():
				errs = append(errs, optionError("WithFile", "%s: lies in the %s: write the file there", dst, above.what()))
			}
			break
		}
	}
	return errs
}

func (m *mount) check() error {
	if err := checkPath(m.dst); err != nil {
		return err
	}
	dst := path.Clean(m.dst)
	switch {
	case dst == "/":
		return errors.New("/: use WithRootfs")
	case dst == "/proc" || strings.HasPrefix(dst, "/proc/"):
		return fmt.Errorf("%s: /proc is the run's own", dst)
	case dst == "/dev" || strings.HasPrefix(dst, "/dev/") && dst != "/dev/shm" && !strings.HasPrefix(dst, "/dev/shm/"):
		return fmt.Errorf("%s: /dev is the run's own, but for /dev/shm", dst)
	}
	switch m.kind {
	case bindMount, readOnlyBindMount:
		return checkPath(m.src)
	case scratchMount, readOnlyScratchMount:
		if m.from == nil {
			return fmt.Errorf("%s: the scratch was not made by NewScratch", dst)
		}
	case fsMount:
		if m.from == nil {
			return fmt.Errorf("%s: no file system is given", dst)
		}
	case tmpfsMount:
		if m.size <= 0 {
			return fmt.Errorf("%s: %d is not a positive number of bytes", dst, m.size)
		}
	case fileMount:
		if m.mode&^fs.ModePerm != 0 {
			return fmt.Errorf("%s: mode %v is more than permission bits", dst, m.mode)
		}
	}
	return nil
}

// checkSources looks on the host for what the options name, unless check has
// something to say about that already.
func (r *rootConfig) checkSources() (errs []error) {
	for _, m := range r.mounts {
		if !m.kind.isGiven() || m.check() != nil {
			continue
		}
		var err error
		if m.kind.isBind() {
			_, err = os.Stat(m.src)
		} else {
			_, err = m.from.get()
		}
		if err != nil {
			errs = append(errs, optionError(m.kind.option(), "the source can't be used: %w", err))
		}
	}
	if source := scratchOf(r.upper); source != nil {
		if _, err := source.get(); err != nil {
			errs = append(errs, optionError("WithScratchRoot", "the source can't be used: %w", err))
		}
	}
	for _, dir := range r.rootfs.layers {
		if checkPath(dir) != nil {
			continue
		}
		if info, err := os.Stat(dir); err != nil {
			errs = append(errs, r.subject().wrong("%w", err))
		} else if !info.IsDir() {
			errs = append(errs, r.subject().wrong("%s is not a directory", dir))
		}
	}
	return errs
}
