//go:build linux

package compile

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
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

// devices are all the devices that a run has. They are the cell's, and the same as the host's.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// declareTrees declares the host directories and files that accompany the run.
func (k *compiler) declareTrees() {
	k.bind, k.lower = map[int]program.Slot{}, map[string]program.Slot{}
	add := func(t Tree) program.Slot {
		k.plan.Files = append(k.plan.Files, t)
		what, how := t.Path, "read-only"
		if t.From != nil {
			what = t.Of.String()
		}
		if t.Writable {
			how = "writable"
		}
		return k.b.File(what + ", " + how)
	}
	r := &k.c.Root
	for i, m := range r.Mounts {
		t := Tree{Of: fault.Subject{Option: m.Source.Option()}}
		switch source := m.Source.(type) {
		case spec.Bind:
			t.Path = source.Path
			k.mapTree(&t, source.ReadOnly)
			k.plan.OwnUser = k.plan.OwnUser || !source.ReadOnly
		case spec.Scratch:
			t.From = source.From
			k.mapTree(&t, source.ReadOnly)
			// Root may give files to others, as far as it has the capabilities for that.
			t.MapAll = k.shape.WideIDs && k.c.Namespaces.UID == 0 && k.c.Namespaces.GID == 0
			k.plan.OwnUser = true // because the user owns the scratch's files
		case spec.FS:
			t.From = source.From
		default:
			continue
		}
		k.bind[i] = add(t)
	}
	if !k.ownRoot {
		return
	}
	if k.filesLayer() {
		k.files = add(Tree{From: k.m.Files.Layer, MapOwner: !k.shape.HostIDs, MapIfCan: !k.shape.HostIDs, Of: fault.Subject{Option: "WithWritableRoot"}})
	}
	if upper := r.Upper; upper != nil {
		k.upper = add(Tree{From: upper, Root: true, Writable: true, MapAll: true, Of: fault.Subject{Option: "WithScratchRoot"}})
	}
	for _, dir := range k.rootTrees() {
		t := Tree{Path: k.source(dir), Of: k.c.Root.Subject(), Partial: k.partial()}
		switch {
		case k.keepsIDs():
			t.MapAll, t.MapIfCan = true, true
		case !strings.HasPrefix(dir, "/var/") && k.m.Libraries[dir] == "":
			t.MapOwner, t.MapIfCan, t.Of = k.mapsLayers() && !k.shape.HostIDs, !k.shape.HostIDs, fault.Subject{Option: "WithWritableRoot"}
		}
		k.lower[dir] = add(t)
	}
}

// mapTree makes the files of a tree belong to the run's user; those of a read-only one only if that
// is possible.
func (k *compiler) mapTree(t *Tree, readOnly bool) {
	t.Writable, t.MapOwner, t.MapIfCan = !readOnly, !k.shape.HostIDs, readOnly && !k.shape.HostIDs
}

// mapsLayers reports whether overlayfs takes layers with mapped ids:
// Documentation/filesystems/overlayfs.rst, from Linux 5.19 on.
func (k *compiler) mapsLayers() bool { return k.m.AtLeast(5, 19) }

// keepsIDs reports whether files of the root have the same owners in the run as on the host.
func (k *compiler) keepsIDs() bool {
	return k.c.Root.Rootfs.KeepsIDs && k.shape.WideIDs && k.mapsLayers()
}

// partial reports whether what is mounted below HostRootfs's directories is left out, as it can't
// be made read-only in one call.
func (k *compiler) partial() bool { return k.c.Root.Rootfs.Layers == nil && !k.m.HasSetAttr() }

// attachSet attaches a mount with attributes added to those that it has. Before Linux 5.12 they are
// set once it is attached, all of them: mount(2), MS_REMOUNT|MS_BIND.
func (k *compiler) attachSet(b *program.Builder, mount, root program.Slot, at string, has, add int) {
	if k.m.HasSetAttr() {
		b.SetAttr(mount, uint64(add), false)
	}
	k.attachIn(b, mount, root, at)
	if !k.m.HasSetAttr() {
		b.Remount(mount, has|add)
	}
}

// rootTrees returns where the host directories and files are in the root that is made of them: at
// the same place as on the host, except for libraries.
func (k *compiler) rootTrees() []string {
	if layers := k.c.Root.Rootfs.Layers; layers != nil {
		return layers
	}
	return slices.Concat(k.m.RootDirs, k.hostDirs(), slices.Sorted(maps.Keys(k.m.Libraries)))
}

// hostDirs returns the directories of the host's /var that are mounted.
func (k *compiler) hostDirs() []string {
	if k.m.Files == nil {
		return nil
	}
	return k.m.Files.Dirs
}

// source returns the host's path of one of rootTrees.
func (k *compiler) source(p string) string { return cmp.Or(k.m.Libraries[p], p) }

// compileTemplate builds the program that assembles, once per cell, what runs have in common: the
// root, or, if each has its own root, the devices.
func (k *compiler) compileTemplate() error {
	b := program.NewBuilder()
	if k.ownRoot {
		b.Call("umask", unix.SYS_UMASK, program.Int(0))
		dev := k.addDevices(b, func(dev program.Slot) { b.AttachAt(dev, program.CellStaging) })
		if k.layout.Sys {
			k.addSys(b, dev, sysBelowDev)
		}
		if k.m.HasSetAttr() {
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
	if k.plan.Template = p; k.plan.Copies != nil {
		image = binary.NativeEndian.AppendUint64(slices.Clip(image), k.plan.Copies.Sum)
	}
	k.plan.Key = sha256.Sum256(image)
	return nil
}

// addSharedRoot assembles the root at program.CellStaging.
func (k *compiler) addSharedRoot(b *program.Builder) {
	b.Stage("root file system")
	var given []program.Slot
	for _, p := range k.rootTrees() {
		k.plan.Trees = append(k.plan.Trees, Tree{Path: k.source(p), Of: k.c.Root.Subject(), Partial: k.partial()})
		given = append(given, b.File(p+", read-only"))
	}
	b.Call("umask", unix.SYS_UMASK, program.Int(0))
	var root program.Slot
	inMemory := k.c.Root.Rootfs.Layers == nil
	if inMemory {
		if k.m.Files != nil {
			k.plan.Copies = k.m.Files
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
	if k.m.HasSetAttr() {
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

// attachOwn attaches /proc or /dev. What belongs on top of them, such as the masks, is attached
// relative to the mount itself: by its path it could go elsewhere in a root in which links are
// swapped (CVE-2025-31133, CVE-2025-52881).
func (k *compiler) attachOwn(b *program.Builder, mount, root program.Slot, at string) {
	b.For(program.OwnPlace, func() {
		target := b.OpenNoLink(root, at)
		b.Attach(mount, target)
		b.Close(target)
	})
}

// addDevices assembles /dev, once it is attached, except for what is each run's own, pts and shm.
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
		if !k.m.HasSetAttr() {
			attr |= attrRO // else it is made so with the whole template
		}
		k.attachSet(b, node, dev, name, 0, attr)
		b.Close(node)
	}
	if !k.m.HasSetAttr() {
		b.Remount(dev, attrRO|attrNoSUID|attrNoDev|attrNoExec)
	}
	return dev
}
