package sandbox

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

const (
	attrRO     = unix.MOUNT_ATTR_RDONLY
	attrNoSUID = unix.MOUNT_ATTR_NOSUID
	attrNoDev  = unix.MOUNT_ATTR_NODEV
	attrNoExec = unix.MOUNT_ATTR_NOEXEC
)

// devices are all that a run has: the cell's, which are the host's.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// declareTrees says which host directories and files accompany the run.
func (k *compiler) declareTrees() {
	k.bind, k.lower = map[int]program.Slot{}, map[string]program.Slot{}
	add := func(t tree) program.Slot {
		k.plan.files = append(k.plan.files, t)
		what, how := t.path, "read-only"
		if t.from != nil {
			what = t.of.String()
		}
		if t.writable {
			how = "writable"
		}
		return k.b.File(what + ", " + how)
	}
	r := &k.c.Root
	for i, m := range r.Mounts {
		t := tree{from: sourceOf(m.Source), of: fault.Subject{Option: m.Source.Option()}}
		switch source := m.Source.(type) {
		case spec.Bind:
			t.path = source.Path
			k.mapTree(&t, source.ReadOnly)
			k.plan.ownUser = k.plan.ownUser || !source.ReadOnly
		case spec.Scratch:
			k.mapTree(&t, source.ReadOnly)
			k.plan.ownUser = true // who owns its files
		case spec.FS:
		default:
			continue
		}
		k.bind[i] = add(t)
	}
	if !k.ownRoot() {
		return
	}
	if k.filesLayer() {
		k.files = add(tree{from: k.m.files.layer, mapOwner: !k.shape.hostIDs, mapIfCan: !k.shape.hostIDs, of: fault.Subject{Option: "WithWritableRoot"}})
	}
	if upper := upperOf(r); upper != nil {
		k.upper = add(tree{from: upper, root: true, writable: true, mapAll: true, of: fault.Subject{Option: "WithScratchRoot"}})
	}
	for _, dir := range k.rootTrees() {
		t := tree{path: k.source(dir), of: k.c.Root.Subject(), partial: k.partial()}
		switch {
		case k.keepsIDs():
			t.mapAll, t.mapIfCan = true, true
		case !strings.HasPrefix(dir, "/var/") && k.m.libraries[dir] == "":
			t.mapOwner, t.mapIfCan, t.of = k.mapsLayers() && !k.shape.hostIDs, !k.shape.hostIDs, fault.Subject{Option: "WithWritableRoot"}
		}
		k.lower[dir] = add(t)
	}
}

// mapTree has the files of a tree belong to the run's user; of a read-only one where that is
// possible.
func (k *compiler) mapTree(t *tree, readOnly bool) {
	t.writable, t.mapOwner, t.mapIfCan = !readOnly, !k.shape.hostIDs, readOnly && !k.shape.hostIDs
}

// hasSetAttr tells whether the kernel has mount_setattr(2), which came with Linux 5.12.
func (m *machine) hasSetAttr() bool { return m.AtLeast(5, 12) }

// mapsLayers tells whether overlayfs takes layers with mapped ids: Documentation/filesystems/overlayfs.rst, from Linux 5.19 on.
func (k *compiler) mapsLayers() bool { return k.m.AtLeast(5, 19) }

// keepsIDs tells whether files of the root have the same owners in the run as on the host.
func (k *compiler) keepsIDs() bool {
	return k.c.Root.Rootfs.KeepsIDs && k.shape.wideIDs && k.mapsLayers()
}

// ownRoot tells whether each run assembles a root of its own: it may change it, or its files belong to the run's own ids.
func (k *compiler) ownRoot() bool { return k.c.Root.Writable != 0 || k.keepsIDs() }

// partial tells whether what is mounted below HostRootfs's directories is left out, as it
// can't be made read-only in one call.
func (k *compiler) partial() bool { return k.c.Root.Rootfs.Layers == nil && !k.m.hasSetAttr() }

// attachSet attaches a mount with attributes added to those that it has. Before Linux 5.12 they
// are set once it is attached, all of them: mount(2), MS_REMOUNT|MS_BIND.
func (k *compiler) attachSet(b *program.Builder, mount, root program.Slot, at string, has, add int) {
	if k.m.hasSetAttr() {
		b.SetAttr(mount, uint64(add), false)
	}
	k.attachIn(b, mount, root, at)
	if !k.m.hasSetAttr() {
		b.Remount(mount, has|add)
	}
}

// rootTrees is where the host directories and files are that the root is made of: for all but libraries the same
// place as the host's.
func (k *compiler) rootTrees() []string {
	if layers := k.c.Root.Rootfs.Layers; layers != nil {
		return layers
	}
	return slices.Concat(k.m.RootDirs, k.hostDirs(), slices.Sorted(maps.Keys(k.m.libraries)))
}

// hostDirs is the directories of the host's /var that are mounted.
func (k *compiler) hostDirs() []string {
	if k.m.files == nil {
		return nil
	}
	return k.m.files.Dirs
}

// source is the host's path of one of rootTrees.
func (k *compiler) source(p string) string { return cmp.Or(k.m.libraries[p], p) }

// compileTemplate builds the program that assembles, once per cell, what is not each run's own: the root, or of one that is,
// the devices.
func (k *compiler) compileTemplate() error {
	b := program.NewBuilder()
	if k.ownRoot() {
		b.Call("umask", unix.SYS_UMASK, program.Int(0))
		dev := k.addDevices(b, func(dev program.Slot) { b.AttachAt(dev, program.CellStaging) })
		if k.layout.Sys {
			k.addSys(b, dev, sysBelowDev)
		}
		if k.m.hasSetAttr() {
			b.SetAttr(dev, attrRO, true)
		}
	} else {
		k.addSharedRoot(b)
	}
	p, err := k.program(b)
	if err != nil {
		return err
	}
	image := p.Image()
	if k.plan.template = p; k.plan.copies != nil {
		image = append(slices.Clip(image), k.m.files.Sum[:]...)
	}
	k.plan.key = sha256.Sum256(image)
	return nil
}

// addSharedRoot assembles the root at program.CellStaging.
func (k *compiler) addSharedRoot(b *program.Builder) {
	b.Stage("root file system")
	var given []program.Slot
	for _, p := range k.rootTrees() {
		k.plan.trees = append(k.plan.trees, tree{path: k.source(p), of: k.c.Root.Subject(), partial: k.partial()})
		given = append(given, b.File(p+", read-only"))
	}
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	var root program.Slot
	inMemory := k.c.Root.Rootfs.Layers == nil
	if inMemory {
		if k.m.files != nil {
			k.plan.copies, k.plan.copied = k.m.files.copy, k.m.files.Count()
			root = b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str(program.CellStaging), program.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, "O_PATH|O_DIRECTORY|O_CLOEXEC"), program.Int(0))
		} else {
			root = b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", "size=4m")
			b.AttachAt(root, program.CellStaging)
		}
		k.addHostSkeleton(b, program.Use(root), "", false)
		for i, p := range k.rootTrees() {
			k.attachIn(b, given[i], root, p)
		}
	} else {
		root = k.addLayers(b, given)
		b.AttachAt(root, program.CellStaging)
		k.addOver(b, root)
	}
	k.addDevices(b, func(dev program.Slot) { k.attachOwn(b, dev, root, "dev") })
	if k.layout.Sys {
		k.addSys(b, root, "sys")
	}
	if k.m.hasSetAttr() {
		b.SetAttr(root, attrRO, true)
	} else if inMemory {
		b.Remount(root, attrRO|attrNoSUID|attrNoDev) // the rest is read-only already
	}
}

func (k *compiler) attachIn(b *program.Builder, mount, root program.Slot, at string) {
	target := b.OpenInRoot(root, at)
	b.Attach(mount, target)
	b.Close(target)
}

// attachOwn attaches /proc or /dev. What belongs on top of them, such as the masks, is attached relative to the mount
// itself: by its path it could go elsewhere in a root in which somebody swaps links (CVE-2025-31133, CVE-2025-52881).
func (k *compiler) attachOwn(b *program.Builder, mount, root program.Slot, at string) {
	b.For(program.OwnPlace, func() {
		target := b.OpenNoLink(root, at)
		b.Attach(mount, target)
		b.Close(target)
	})
}

// addDevices assembles /dev, once it is attached, but for what is each run's own, pts and shm.
func (k *compiler) addDevices(b *program.Builder, attach func(dev program.Slot)) program.Slot {
	b.Stage("devices")
	dev := b.FileSystem("tmpfs", attrNoSUID|attrNoDev|attrNoExec, "mode=755", "size=64k")
	attach(dev)
	at := program.Use(dev)
	b.Mkdir(at, "pts", 0o755)
	b.Mkdir(at, "shm", 0o755)
	for _, link := range [][2]string{{"ptmx", "pts/ptmx"}, {"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
		{"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}} {
		b.Symlink(link[1], at, link[0])
	}
	for _, name := range devices {
		b.CreateFile(at, name, nil, 0o666)
		node := b.CloneTree("/dev/" + name)
		attr := attrNoSUID | attrNoExec
		if !k.m.hasSetAttr() {
			attr |= attrRO // elsewhere with the whole template
		}
		k.attachSet(b, node, dev, name, 0, attr)
		b.Close(node)
	}
	if !k.m.hasSetAttr() {
		b.Remount(dev, attrRO|attrNoSUID|attrNoDev|attrNoExec)
	}
	return dev
}

// addRoot makes the run's root, a copy of the template or one of its own, and what no two runs share on top of it.
func (k *compiler) addRoot() {
	b := k.b
	b.Stage("root file system")
	if k.ownRoot() {
		k.addOwnRoot()
	} else {
		b.AttachAt(k.tree, program.CellRoot)
	}
	k.addProc()
	b.Stage("/dev/pts")
	pts := b.FileSystem("devpts", attrNoSUID|attrNoExec, "newinstance", "ptmxmode=0666", "mode=0620", "max=64") // the machine has 4096
	k.attachIn(b, pts, k.tree, "dev/pts")
	b.Close(pts)
	if k.shape.hostIDs {
		k.addFileRights()
	}
	for i := range k.layout.Mounts {
		if !k.layout.Mounts[i].IsFile() {
			k.addMount(&k.layout.Mounts[i])
		}
	}
	k.addDirs()
	k.addFiles()
}

// addProc mounts the run's own /proc, read-only as a whole, and covers what
// tells about the host. It must be done while the cell's full /proc is still in sight.
func (k *compiler) addProc() {
	b := k.b
	b.Stage("/proc")
	const attr = attrNoSUID | attrNoDev | attrNoExec
	proc := b.FileSystem("proc", attr)
	if !k.shape.hostIDs { // the limit would be the host's own
		// The host counts them for all runs together, and has 128 instances and, with little memory, 8192 watches. In the cell's
		// /proc the kernel would look through the entries of all live runs for this one's.
		b.WriteFile(program.Use(proc), "sys/user/max_inotify_instances", "16")
		b.WriteFile(program.Use(proc), "sys/user/max_inotify_watches", "4096")
	}
	if k.c.Namespaces.Network == spec.NetworkNone {
		b.WriteFile(program.Use(proc), "sys/net/ipv4/ping_group_range", k.pingGroups())
	}
	if k.m.hasSetAttr() {
		b.SetAttr(proc, attrRO, false)
	}
	k.attachOwn(b, proc, k.tree, "proc")
	if !k.m.hasSetAttr() {
		b.Remount(proc, attr|attrRO)
	}
	for _, p := range k.m.Proc {
		with, has := "/dev/null", 0
		if p.Dir {
			with, has = program.CellEmpty, attrNoDev // it may have, and then must keep it
		} else if p.Controllers {
			with, has = program.CellControllers, attrNoDev
		}
		c := b.CloneTree(with)
		k.attachSet(b, c, proc, strings.TrimPrefix(p.Path, "/proc/"), has, attrRO|attrNoSUID|attrNoExec)
		b.Close(c)
	}
	b.Close(proc)
}

// addMount mounts what an option or a default puts into the root.
func (k *compiler) addMount(p *spec.Placed) {
	b, n := k.b, &k.c.Namespaces
	b.StageFor(program.Place, p.Source.Option()+" "+p.Dst)
	if p.On != nil && p.On.IsTmpfs() {
		k.addPoint(p)
	}
	tmpfs, ok := p.Source.(spec.Tmpfs)
	if !ok {
		k.attachIn(b, k.bind[p.Index], k.tree, p.Dst)
		return
	}
	m := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, append([]string{fmt.Sprintf("uid=%d", n.UID), fmt.Sprintf("gid=%d", n.GID),
		"mode=" + p.Perm}, tmpfsSize(tmpfs.Size)...)...)
	k.attachIn(b, m, k.tree, p.Dst)
	b.Close(m)
}

// addDirs makes directories for the run's user on file systems in memory.
func (k *compiler) addDirs() {
	for _, w := range k.layout.Within {
		k.b.Stage("directory " + w.Dir)
		k.b.MkdirAll(k.tree, w.On, w.Dir)
		at := k.b.OpenInRoot(k.tree, path.Dir(w.Dir))
		k.b.Chown(program.Use(at), path.Base(w.Dir), k.c.Namespaces.UID, k.c.Namespaces.GID)
		k.b.Close(at)
	}
}

// tmpfsSize bounds a file system in memory. Files that are empty take none of its size but a
// kilobyte of the kernel's: tmpfs(5).
func tmpfsSize(bytes int64) []string {
	return []string{fmt.Sprintf("size=%d", bytes), fmt.Sprintf("nr_inodes=%d", bytes/(4*KiB)+256)}
}

// addPoint makes the mount point of what lies on a tmpfs.
func (k *compiler) addPoint(p *spec.Placed) {
	if !p.OntoFile {
		k.b.MkdirAll(k.tree, p.On.Dst, p.Dst)
		return
	}
	k.b.MkdirAll(k.tree, p.On.Dst, path.Dir(p.Dst))
	dir := k.b.OpenInRoot(k.tree, path.Dir(p.Dst))
	k.b.CreateFile(program.Use(dir), path.Base(p.Dst), nil, 0o644)
	k.b.Close(dir)
}

// addFiles prepares the files of WithFile that the command's program does not make, all but their
// content: in place where that is the run's own memory, else on a file system of their own from
// where each is mounted, read-only.
func (k *compiler) addFiles() {
	store := program.NoSlot
	dirs := map[string]program.Slot{}
	for i, p := range k.layout.Mounts {
		if !p.IsFile() {
			continue
		}
		k.b.StageFor(program.Place, "WithFile "+p.Dst)
		if p.On != nil || k.c.Root.Writable != 0 {
			k.addFileInPlace(dirs, &p)
			continue
		}
		if store == program.NoSlot {
			store = k.b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", inPages(len(k.c.Root.Mounts), spec.MaxFileBytes))
			k.b.AttachAt(store, program.CellChanges)
		}
		k.addFileMount(store, fmt.Sprint(i), &p)
	}
}

// newFile is a file whose content goes with the command.
type newFile struct {
	dir       program.Slot
	name, dst string
	made      bool
}

func (k *compiler) addFileInPlace(dirs map[string]program.Slot, p *spec.Placed) {
	b, at := k.b, path.Dir(p.Dst)
	dir, ok := dirs[at]
	if !ok {
		have := "/"
		if p.On != nil {
			have = p.On.Dst
		}
		b.MkdirAll(k.tree, have, at)
		dir = b.OpenInRoot(k.tree, at)
		dirs[at] = dir
	}
	b.CallMaybe("unlinkat", unix.SYS_UNLINKAT, program.Use(dir), b.Str(path.Base(p.Dst)), program.Int(0))
	k.addFile(newFile{dir: dir, name: path.Base(p.Dst), dst: p.Dst}, p)
}

func (k *compiler) addFileMount(store program.Slot, name string, p *spec.Placed) {
	b := k.b
	if p.Later {
		b.CreateFile(program.Use(store), name, nil, 0o600)
	}
	k.addFile(newFile{store, name, p.Dst, true}, p)
	f := b.CloneTree(program.CellChanges + "/" + name)
	k.attachSet(b, f, k.tree, p.Dst, attrNoSUID|attrNoDev, attrRO)
	b.Close(f)
}

// addFile makes one file, unless its content comes later.
func (k *compiler) addFile(f newFile, p *spec.Placed) {
	if p.Later {
		k.later = append(k.later, f)
		return
	}
	b, n, file := k.b, &k.c.Namespaces, p.Source.(spec.File)
	b.CreateFile(program.Use(f.dir), f.name, []byte(file.Data), file.Mode)
	b.Chown(program.Use(f.dir), f.name, n.UID, n.GID)
}

// openLater passes files on to the command's program, open for writing. PID 1 must not have them
// open so: they could not be executed (ETXTBSY, execve(2)). One that lies where others may write,
// as in a bind to which a link of the root leads, is made only now: it is not opened by a name
// behind which they could have put something else.
func (k *compiler) openLater() {
	b, n := k.b, &k.c.Namespaces
	for _, f := range k.later {
		b.StageFor(program.Place, "WithFile "+f.dst)
		flags := program.Int(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, "O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC|O_NOFOLLOW")
		if f.made {
			flags = program.Int(unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, "O_WRONLY|O_CLOEXEC|O_NOFOLLOW")
		}
		open := b.CallTo("openat", unix.SYS_OPENAT, program.Use(f.dir), b.Str(f.name), flags, program.Int(0o600, "0600"))
		b.Call("fchown", unix.SYS_FCHOWN, program.Use(open), program.Int(n.UID), program.Int(n.GID))
		b.Pass(open)
	}
}
