//go:build linux

package compile

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/overlay"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// Roots of several layers, which overlayfs merges: the host's directories, and on top of them the
// mount points that they lack, or what a run changes.

// addLayers makes a root of directories of the host, the lowest first, read-only. Mount points that
// they lack come from a layer in memory.
func (k *compiler) addLayers(b *program.Builder, dirs []program.Slot) program.Slot {
	if len(dirs) == 1 && !slices.ContainsFunc(k.missing, func(p Point) bool { return !p.Over }) {
		return dirs[0]
	}
	store := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", "size=1m")
	b.AttachAt(store, program.CellChanges)
	root := k.addOverlay(b, store, rootDir, dirs)
	// The overlay keeps its layers without these mounts.
	b.Call("umount2", unix.SYS_UMOUNT2, b.Str(program.CellChanges), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
	return root
}

// addOverlay makes an overlay of the layers, the lowest first, and of one more on top of them, in a
// directory of the store or of the scratch for the root's changes. That one takes the changes of a
// writable root. Layers are named relative to the directory in the store: a mount option has at
// most 255 bytes.
func (k *compiler) addOverlay(b *program.Builder, store program.Slot, dir string, layers []program.Slot) program.Slot {
	at, writable := program.Use(store), k.c.Root.Writable != 0
	b.Mkdir(at, dir, 0o755)
	var lower []string
	for i, layer := range layers {
		name := strconv.Itoa(i)
		b.Mkdir(at, dir+"/"+name, 0o755)
		b.AttachAt(layer, path.Join(program.CellChanges, dir, name))
		lower = append(lower, name)
	}
	slices.Reverse(lower)
	b.Call("chdir", unix.SYS_CHDIR, b.Str(path.Join(program.CellChanges, dir)))
	if !writable {
		b.Mkdir(at, dir+"/top", 0o755)
		k.addPoints(b, at, dir+"/top")
		return b.FileSystem("overlay", attrRO|attrNoSUID|attrNoDev, "lowerdir=top:"+strings.Join(lower, ":"), "userxattr")
	}
	changes := ""
	if k.c.Root.Upper != nil {
		changes = "../" + upperName + "/" + dir + "/"
		at = program.Use(k.upper)
	}
	for _, name := range []string{dir, dir + "/top", dir + "/work"} {
		// An earlier run may have made them.
		b.CallMaybe("mkdirat", unix.SYS_MKDIRAT, at, b.Str(name), program.Int(0o755, "0755"))
	}
	if !k.keepsIDs() {
		b.Chown(at, dir+"/top", k.c.Namespaces.UID, k.c.Namespaces.GID)
	}
	if k.c.Root.Upper == nil {
		k.addPoints(b, at, dir+"/top")
		if dir == rootDir && k.c.Root.Rootfs.Layers == nil {
			k.addHostSkeleton(b, at, dir+"/top", true)
		}
	}
	return b.FileSystem("overlay", attrNoSUID|attrNoDev, "lowerdir="+strings.Join(lower, ":"), "upperdir="+changes+"top", "workdir="+changes+"work", "userxattr")
}

// upperName is the name in the store at which the scratch that takes changes is mounted.
const upperName = "upper"

// rootDir is the directory with the changes of the root itself, and not of one of HostRootfs's
// directories.
const rootDir = "root"

// addPoints makes the missing mount points below a directory. A directory above them that the
// layers below have gets the same permissions, and, if files keep their owners, the same owner.
func (k *compiler) addPoints(b *program.Builder, at program.Arg, under string) {
	made := map[string]bool{}
	for _, p := range k.missing {
		if p.isThere() && (k.keepsIDs() || k.shape.HostIDs) {
			continue // it has the owner that it has in the image
		}
		dir := under
		parts := strings.Split(strings.TrimPrefix(p.Path, "/"), "/")
		for i, name := range parts {
			dir = path.Join(dir, name)
			if made[dir] {
				continue
			}
			made[dir] = true
			is := overlay.Dir{Mode: 0o755}
			if i < len(p.Have) {
				is = p.Have[i]
			}
			if p.File && i == len(parts)-1 {
				b.CreateFile(at, dir, k.ownFile(p.Content), 0o644)
			} else {
				b.Mkdir(at, dir, is.Mode)
			}
			switch {
			case !k.keepsIDs() && k.c.Root.Writable != 0, p.Own && i >= len(p.Have) && k.ownRoot:
				b.Chown(at, dir, k.c.Namespaces.UID, k.c.Namespaces.GID)
			case k.keepsIDs() && (is.UID != 0 || is.GID != 0) && max(is.UID, is.GID) <= spec.MaxID+1:
				b.Chown(at, dir, is.UID, is.GID)
			}
		}
	}
}

// ownFile returns the content of a file of the run's own in /etc.
func (k *compiler) ownFile(name string) []byte {
	for _, f := range k.etcFiles() {
		if f[0] == name {
			return []byte(f[1])
		}
	}
	return nil
}

// addOver mounts the run's own files over those of a directory that is its root.
func (k *compiler) addOver(b *program.Builder, root program.Slot) {
	over := slices.DeleteFunc(slices.Clone(k.missing), func(p Point) bool { return !p.Over })
	if len(over) == 0 {
		return
	}
	store := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", "size=1m")
	b.AttachAt(store, program.CellChanges)
	for _, p := range over {
		b.CreateFile(program.Use(store), path.Base(p.Content), k.ownFile(p.Content), 0o644)
		f := b.CloneTree(program.CellChanges + "/" + path.Base(p.Content))
		k.attachSet(b, f, root, p.Path, attrNoSUID|attrNoDev, attrRO)
		b.Close(f)
	}
	b.Call("umount2", unix.SYS_UMOUNT2, b.Str(program.CellChanges), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
	b.Close(store)
}

// addOwnRoot makes a root for one run, whose changes go to a file system in memory, or whose files
// belong to the run's ids.
func (k *compiler) addOwnRoot() {
	b := k.b
	devices := k.tree
	if k.c.Root.Writable != 0 {
		k.tree = k.addWritableRoot()
	} else {
		k.tree = k.addLayers(b, k.layers())
		b.AttachAt(k.tree, program.CellRoot)
		k.addOver(b, k.tree)
	}
	b.Stage("devices")
	k.attachOwn(b, devices, k.tree, "dev")
	if k.layout.Sys {
		sys := b.OpenNoLink(devices, sysBelowDev)
		k.attachIn(b, sys, k.tree, "sys")
		b.Close(sys)
	}
	b.Close(devices)
}

// layers returns the directories that accompany the run's program for its root, the lowest first.
func (k *compiler) layers() (slots []program.Slot) {
	for _, dir := range k.c.Root.Rootfs.Layers {
		slots = append(slots, k.lower[dir])
	}
	return slots
}

// addWritableRoot makes and attaches a root whose changes go to a file system in memory, the run's
// own or a scratch.
func (k *compiler) addWritableRoot() program.Slot {
	b, n := k.b, &k.c.Namespaces
	owner := []string{fmt.Sprintf("uid=%d", n.UID), fmt.Sprintf("gid=%d", n.GID)}
	store := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, append(append(owner, "mode=755"), tmpfsSize(k.c.Root.Writable)...)...)
	b.AttachAt(store, program.CellChanges)
	if k.c.Root.Upper != nil {
		b.Mkdir(program.Use(store), upperName, 0o755)
		b.AttachAt(k.upper, program.CellChanges+"/"+upperName)
	}
	if dirs := k.layers(); dirs != nil {
		// Mount points are no changes of the run's.
		if k.c.Root.Upper != nil && len(k.missing) > 0 {
			points := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", "size=1m")
			k.addPoints(b, program.Use(points), ".")
			dirs = append(dirs, points)
		}
		root := k.addOverlay(b, store, rootDir, dirs)
		b.AttachAt(root, program.CellRoot)
		return root
	}
	root := k.addHostRoot(store)
	b.AttachAt(root, program.CellRoot)
	for i, p := range k.rootTrees() {
		if !slices.Contains(k.m.RootDirs, p) {
			k.attachIn(b, k.lower[p], root, p)
			continue
		}
		m := k.addOverlay(b, store, strconv.Itoa(i), []program.Slot{k.lower[p]})
		k.attachIn(b, m, root, p)
		b.Close(m)
	}
	return root
}

// addHostRoot makes what HostRootfs has besides the host's directories, on top of the host's files.
// If a scratch takes the changes, what is made up is a layer as well: it is no change of the run's.
func (k *compiler) addHostRoot(store program.Slot) (root program.Slot) {
	b, n := k.b, &k.c.Namespaces
	var layers []program.Slot
	if k.filesLayer() {
		layers = append(layers, k.files)
	}
	if k.c.Root.Upper != nil {
		skeleton := b.FileSystem("tmpfs", attrNoSUID|attrNoDev, "mode=755", "size=4m")
		k.addHostSkeleton(b, program.Use(skeleton), "", true)
		return k.addOverlay(b, store, rootDir, append(layers, skeleton))
	}
	if layers != nil {
		return k.addOverlay(b, store, rootDir, layers)
	}
	b.Mkdir(program.Use(store), rootDir, 0o755)
	b.Chown(program.Use(store), rootDir, n.UID, n.GID)
	k.addHostSkeleton(b, program.Use(store), rootDir, true)
	return b.CloneTree(program.CellChanges + "/" + rootDir)
}

// filesLayer reports whether a root of the run's own has a layer with the host's files, which takes
// Linux 5.12.
func (k *compiler) filesLayer() bool {
	return k.ownRoot && k.c.Root.ShowsHost() && k.m.Files != nil && k.m.HasSetAttr()
}

// checkOverlay returns an error if the root needs overlayfs in a user namespace, which takes Linux
// 5.11, and the kernel is older.
func (k *compiler) checkOverlay() error {
	m, r, missing := k.m, &k.c.Root, k.missing
	old := fmt.Errorf("overlayfs in a user namespace takes Linux 5.11, and this is %d.%d", m.Kernel[0], m.Kernel[1])
	switch {
	case m.AtLeast(5, 11):
		return nil
	case r.Writable != 0:
		return &fault.SetupError{Stage: "WithWritableRoot", Err: old, Hint: "a newer kernel, or WithTmpfs and WithBind where the command writes"}
	case len(r.Rootfs.Layers) > 1:
		return &fault.SetupError{Stage: r.Subject().String(), Err: fmt.Errorf("LayersRootfs: %w", old), Hint: "a newer kernel, or DirRootfs of one directory"}
	case len(missing) > 0 && missing[0].Content == "":
		return &fault.SetupError{Stage: r.Subject().String(), Err: fmt.Errorf("the directory has no %s: %w", missing[0].Path, old), Hint: "make the mount points in it, or a newer kernel"}
	}
	return nil
}
