//go:build linux

package compile

import (
	"slices"
	"strconv"

	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// Part is a part of a root that keeps changes of its own.
type Part struct {
	At     string          // in the root
	Dir    string          // in what takes the changes, which are in Top
	Layers []string        // directories of the host that are below them, the lowest first
	Made   map[string]bool // in place of Layers: what is made up; true for a directory
}

// Top returns the directory in which overlayfs has the changes.
func (p *Part) Top() string { return p.Dir + "/top" }

// Parts returns the parts of a root that can be changed.
func Parts(c *spec.Spec, m *Machine, f Found) (parts []Part) {
	if layers := c.Root.Rootfs.Layers; layers != nil {
		return []Part{{At: "/", Dir: rootDir, Layers: layers}}
	}
	k := newCompiler(c, m, Shape{}, f)
	made := k.addHostSkeleton(k.b, program.Use(0), "", true)
	if k.filesLayer() {
		for _, e := range k.m.Files.Entries {
			if _, ok := made[e.Path]; !ok {
				made[e.Path] = e.Mode.IsDir()
			}
		}
	}
	parts = append(parts, Part{At: "/", Dir: rootDir, Made: made})
	for i, p := range k.rootTrees() {
		if slices.Contains(k.m.RootDirs, p) {
			parts = append(parts, Part{At: p, Dir: strconv.Itoa(i), Layers: []string{p}})
		}
	}
	return parts
}
