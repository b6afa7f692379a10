// Package docker has Docker make the cells of package sandbox, the outer containers in which runs
// are. A program that imports it can name Docker:
//
//	import _ "github.com/cellkit/sandbox/docker"
//
//	cell, err := sandbox.NewCell(sandbox.CellRuntime("docker"))
//	out, err := sandbox.New(..., sandbox.WithCell(cell)).Output(ctx)
//
// Runs are made in the same way and cost the same as in any cell; docs/WALLS.md compares. It needs
// Linux, root, and a daemon of Docker 19.03 or later on this machine, whose socket DOCKER_HOST
// names, or which is at /var/run/docker.sock. Podman and rootless daemons don't do. The daemon's
// userns-remap is of no importance: in the container, the cell has a user namespace of its own, as
// in every other.
//
// Whoever may use the daemon's socket is root on the machine in effect. Runs can't reach it, unless
// it is bound into them.
package docker
