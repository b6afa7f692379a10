//go:build linux

package wall

import (
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Finish adds the calls that make a container which another runtime has started what the Container
// says, once PID 1 is there: whatever that runtime has mounted, afterwards the root has nothing but
// what content.go lists. Other processes of the container must have the same root: pivot_root(2)
// moves them too.
func Finish(b *program.Builder) {
	b.Stage("the root of the cell")
	none := program.Int(0, "NULL")
	mount := func(kind, at string, flags int, data string) {
		b.Call("mount", unix.SYS_MOUNT, b.Str(kind), b.Str(at), b.Str(kind), program.Int(flags), b.Str(data))
	}
	b.Call("mount", unix.SYS_MOUNT, none, b.Str("/"), none, program.Int(unix.MS_PRIVATE|unix.MS_REC, "MS_PRIVATE|MS_REC"), none)
	const root = "/cell" // the directory that Start has made for it
	mount("tmpfs", root, unix.MS_NOSUID, "mode=755,size=64k")
	for _, m := range (&Container{}).mounts() {
		b.Mkdir(program.AtCWD, root+m.destination, 0o755)
		mount(m.kind, root+m.destination, m.flags, m.data)
	}
	for _, d := range deviceNodes {
		b.CreateFile(program.AtCWD, root+d.path, nil, 0o666)
		b.Call("mount", unix.SYS_MOUNT, b.Str(d.path), b.Str(root+d.path), none, program.Int(unix.MS_BIND, "MS_BIND"), none)
	}
	b.Call("mount", unix.SYS_MOUNT, none, b.Str(root), none, program.Int(unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID, "MS_REMOUNT|MS_BIND|MS_RDONLY|MS_NOSUID"), none)
	b.Call("chdir", unix.SYS_CHDIR, b.Str(root))
	b.Call("pivot_root", unix.SYS_PIVOT_ROOT, b.Str("."), b.Str("."))
	b.Call("umount2", unix.SYS_UMOUNT2, b.Str("."), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/"))
}
