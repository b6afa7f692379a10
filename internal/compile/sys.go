//go:build linux

package compile

import (
	"fmt"
	"path"
	"strings"

	"github.com/cellkit/sandbox/internal/host"
	"github.com/cellkit/sandbox/internal/program"
)

// What a run has of /sys: files in memory from which programs learn how many CPUs there are and how
// large a page is, as this machine had them, and its own cgroup.

// sysBelowDev is where the template has /sys if each run has its own root: on a mount point of
// /dev, which becomes free when /sys is moved to its place.
const sysBelowDev = "shm"

// inPages returns the size of a tmpfs for the given number of small files, and of bytes in larger
// ones: each file takes whole pages, of up to 64 KiB.
func inPages(files int, bytes int64) string {
	return fmt.Sprintf("size=%dk", (bytes+int64(files+64)*64*kib)/kib)
}

// addSys assembles /sys and attaches it.
func (k *compiler) addSys(b *program.Builder, root program.Slot, at string) {
	b.Stage("/sys")
	const attr = attrNoSUID | attrNoDev | attrNoExec
	sys := b.FileSystem("tmpfs", attr, "mode=755", inPages(len(k.m.Sys), mib))
	k.attachIn(b, sys, root, at)
	s := &skeleton{b: b, at: program.Use(sys), made: map[string]bool{"/sys": true}, below: "/sys"}
	s.mkdir("/sys" + cgroupDir)
	for _, h := range k.shape.Views {
		if h.Name == "" {
			continue
		}
		s.mkdir(path.Join("/sys", cgroupDir, h.Name))
		for _, link := range h.Links() {
			s.symlink(path.Join("/sys", cgroupDir, link), h.Name)
		}
	}
	s.files(k.m.Sys)
	if !k.m.HasSetAttr() {
		b.Remount(sys, attr|attrRO) // else it is made so with the whole template
	}
	b.Close(sys)
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

const cgroupDir = "/fs/cgroup"

// addView mounts the run's own cgroup, read-only. The command does so when it has joined that
// cgroup, is in a cgroup namespace of its own, and still has its capabilities: what the mount shows
// begins at that cgroup.
func (k *compiler) addView() {
	if !k.layout.Sys || k.shape.View == (host.View{}) {
		return
	}
	b := k.b
	b.Stage("the run's own cgroup")
	for _, h := range k.shape.View {
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
