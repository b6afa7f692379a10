package sandbox

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/spec"
)

// What a run has of /sys: files in memory from which programs learn how many CPUs there are and how
// large a page is, as this machine had them, and its own cgroup.

// sysBelowDev is where the template of a root that is each run's own has /sys: on a mount point of
// its /dev, which becomes free when /sys is moved to its place.
const sysBelowDev = "shm"

// inPages is the size of a tmpfs for so many small files, and so many bytes of larger ones: each
// takes whole pages, of up to 64 KiB.
func inPages(files int, bytes int64) string {
	return fmt.Sprintf("size=%dk", (bytes+int64(files+64)*64*KiB)/KiB)
}

// addSys assembles /sys and attaches it.
func (k *compiler) addSys(b *program.Builder, root program.Slot, at string) {
	b.Stage("/sys")
	const attr = attrNoSUID | attrNoDev | attrNoExec
	sys := b.FileSystem("tmpfs", attr, "mode=755", inPages(len(k.m.Sys), MiB))
	k.attachIn(b, sys, root, at)
	s := &skeleton{b: b, at: program.Use(sys), made: map[string]bool{"/sys": true}, below: "/sys"}
	s.mkdir("/sys" + cgroupDir)
	for _, h := range k.shape.views {
		if h.Name == "" {
			continue
		}
		s.mkdir(path.Join("/sys", cgroupDir, h.Name))
		for _, link := range h.Links() {
			s.symlink(path.Join("/sys", cgroupDir, link), h.Name)
		}
	}
	first := map[string]string{} // most CPUs are like others
	for _, f := range k.m.Sys {
		switch same := first[f.Content]; {
		case strings.HasSuffix(f.Path, "/"):
			s.mkdir(path.Clean(f.Path))
		case same != "":
			s.link(f.Path, same)
		default:
			s.file(f.Path, f.Content)
			first[f.Content] = f.Path
		}
	}
	if !k.m.hasSetAttr() {
		b.Remount(sys, attr|attrRO) // elsewhere with the whole template
	}
	b.Close(sys)
}

const cgroupDir = "/fs/cgroup"

// addView mounts the run's own cgroup, read-only. The command does so when it is there, in a cgroup
// namespace of its own, and still has its capabilities: what the mount shows begins at that cgroup.
func (k *compiler) addView() {
	if !k.layout.Sys || k.shape.view == (host.View{}) {
		return
	}
	b := k.b
	b.Stage("the run's own cgroup")
	for _, h := range k.shape.view {
		if h.Type == "" {
			continue
		}
		var options []string
		if h.Options != "" {
			options = strings.Split(h.Options, ",")
		}
		m := b.FileSystem(h.Type, attrRO|attrNoSUID|attrNoDev|attrNoExec, options...)
		k.attachIn(b, m, k.tree, path.Join("sys", cgroupDir, h.Name))
		b.Close(m)
	}
}

// withoutSys leaves /sys out of a directory that needs no layer on top for anything else, and of
// what is missing: a layer keeps runs from seeing later changes of the directory, and takes Linux
// 5.11.
func withoutSys(r *spec.Root, f found) found {
	if len(r.Rootfs.Layers) > 1 || r.Writable != 0 || slices.ContainsFunc(f.missing, needsLayer) {
		return f
	}
	f.missing = slices.DeleteFunc(f.missing, func(p point) bool {
		isSys := p.path == "/sys"
		f.NoSys = f.NoSys || isSys
		return isSys
	})
	return f
}

// needsLayer reports whether what is missing has to be put on a layer, for which /sys alone is no
// reason.
func needsLayer(p point) bool { return !p.over && p.path != "/sys" }

// link makes one more name of a file.
func (s *skeleton) link(p, of string) {
	s.add(p, false, func(rel string) {
		s.b.Call("linkat", unix.SYS_LINKAT, s.at, s.b.Str(s.rel(of)), s.at, s.b.Str(rel), program.Int(0))
	})
}
