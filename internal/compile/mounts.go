//go:build linux

package compile

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// addRoot makes the run's root, a copy of the template or one of its own, and what no two runs
// share on top of it.
func (k *compiler) addRoot() {
	b := k.b
	b.Stage("root file system")
	if k.ownRoot {
		k.addOwnRoot()
	} else {
		b.AttachAt(k.tree, program.CellRoot)
	}
	k.addProc()
	b.Stage("/dev/pts")
	// The whole machine has 4096 pseudo-terminals.
	pts := b.FileSystem("devpts", attrNoSUID|attrNoExec, "newinstance", "ptmxmode=0666", "mode=0620", "max=64")
	k.attachIn(b, pts, k.tree, "dev/pts")
	b.Close(pts)
	if k.shape.HostIDs {
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

// addProc mounts the run's own /proc, read-only as a whole, and covers what shows facts of the
// host. It must be done while the cell's full /proc is still visible.
func (k *compiler) addProc() {
	b := k.b
	b.Stage("/proc")
	const attr = attrNoSUID | attrNoDev | attrNoExec
	proc := b.FileSystem("proc", attr)
	if !k.shape.HostIDs { // the limit would be the host's own
		// The host counts inotify instances and watches for all runs together, and allows
		// 128 instances and, with little memory, 8192 watches. They are not set in the
		// cell's /proc, where the kernel would look through the entries of all live runs
		// for this one's.
		b.WriteFile(program.Use(proc), "sys/user/max_inotify_instances", "16")
		b.WriteFile(program.Use(proc), "sys/user/max_inotify_watches", "4096")
	}
	if k.newNetwork() {
		b.WriteFile(program.Use(proc), "sys/net/ipv4/ping_group_range", k.pingGroups())
	}
	if k.m.HasSetAttr() {
		b.SetAttr(proc, attrRO, false)
	}
	k.attachOwn(b, proc, k.tree, "proc")
	if !k.m.HasSetAttr() {
		b.Remount(proc, attr|attrRO)
	}
	for _, p := range k.m.Proc {
		with, has := "/dev/null", 0
		if p.Dir {
			with, has = program.CellEmpty, attrNoDev // a nodev mount must keep that
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

// tmpfsSize returns the options that bound a file system in memory. Empty files take none of its
// size but a kilobyte of the kernel's memory, so their number is bounded too: tmpfs(5).
func tmpfsSize(bytes int64) []string {
	return []string{fmt.Sprintf("size=%d", bytes), fmt.Sprintf("nr_inodes=%d", bytes/(4*kib)+256)}
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

// addFiles prepares the files of WithFile that the command's program does not make, all except
// their content. It makes them in place if that is the run's own memory, else on a file system of
// their own, from which each is mounted, read-only.
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
// open for writing: they could not be executed (ETXTBSY, execve(2)). A file in a place where others
// may write, such as a bind to which a link of the root leads, is made only now, so that it is
// never opened by a name behind which they could have put something else.
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
