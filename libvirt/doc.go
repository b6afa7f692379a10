// Package libvirt has libvirt's LXC driver make the cells of package sandbox, the outer containers
// in which runs are. A program that imports it can name libvirt:
//
//	import _ "github.com/cellkit/sandbox/libvirt"
//
//	cell, err := sandbox.NewCell(sandbox.CellRuntime("libvirt"))
//	out, err := sandbox.New(..., sandbox.WithCell(cell)).Output(ctx)
//
// Runs are made in the same way and cost the same as in any cell; docs/WALLS.md compares. It needs
// Linux, root, and a daemon of libvirt with its LXC driver on this machine: virtlxcd or libvirtd,
// at its socket in /run/libvirt. A cell is a transient domain, which has a domain's log and no
// definition; in it, the cell has a user namespace of its own, as in every other.
//
// Whoever may use the daemon's socket is root on the machine in effect. Runs can't reach it, unless
// it is bound into them.
package libvirt
