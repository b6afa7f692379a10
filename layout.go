package sandbox

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/program"
)

// layout is what is put at which place of a root.
type layout struct {
	mounts  []placed // parents before children
	files   []placed // of WithFile that the command's program makes: the run is prepared without them
	filled  []placed // those of mounts that the run is prepared with, but for their content
	mkdirs  []string // mount points that the root itself must have
	mkfiles []string // those of them that are files
	owned   []string // directories of the run's user that the root is to have
	within  []within // and those that lie on a tmpfs
	sys     bool     // /sys is ours
}

// within is a directory that lies on a mount.
type within struct{ dir, on string }

// placed is a mount and what its mount point lies on.
type placed struct {
	mount
	index int    // in rootConfig.mounts, -1 for a default
	perm  string // of a tmpfs
	later bool   // a file whose content the command's program writes
	on    *placed
}

// layout arranges the options' mounts and the default ones around them.
func (r *rootConfig) layout() *layout {
	var all []*placed
	for i, m := range r.mounts {
		m.dst = path.Clean(m.dst)
		p := &placed{mount: m, index: i, perm: "0755"}
		if m.dst == "/tmp" || m.dst == "/dev/shm" {
			p.perm = "1777"
		}
		all = append(all, p)
	}
	for _, d := range []struct{ dst, mode string }{{"/tmp", "1777"}, {"/dev/shm", "1777"}, {homeDir, "0700"}} {
		replaced := slices.ContainsFunc(all, func(p *placed) bool {
			return p.dst == d.dst || p.kind.isGiven() && strings.HasPrefix(d.dst, p.dst+"/")
		})
		if !replaced {
			all = append(all, &placed{mount: mount{kind: tmpfsMount, dst: d.dst, size: defaultTmpfs}, index: -1, perm: d.mode})
		}
	}
	slices.SortFunc(all, func(a, b *placed) int {
		return cmp.Or(cmp.Compare(strings.Count(a.dst, "/"), strings.Count(b.dst, "/")), cmp.Compare(a.dst, b.dst))
	})
	l := &layout{mkdirs: []string{"/proc", "/dev"}, sys: !r.noSys}
	for _, p := range all { // who puts something there has it to himself
		l.sys = l.sys && p.dst != "/sys" && !strings.HasPrefix(p.dst, "/sys/")
	}
	if l.sys {
		l.mkdirs = append(l.mkdirs, "/sys")
	}
	for i, p := range all {
		for _, above := range all[:i] {
			if above.kind != fileMount && strings.HasPrefix(p.dst, above.dst+"/") {
				p.on = above // the last one found is the deepest
			}
		}
		if p.on == nil && p.kind != fileMount && !strings.HasPrefix(p.dst, "/dev/") {
			if p.file {
				l.mkfiles = append(l.mkfiles, p.dst)
			} else {
				l.mkdirs = append(l.mkdirs, p.dst)
			}
		}
	}
	for _, p := range all {
		l.mounts = append(l.mounts, *p)
	}
	l.placeDirs(r.dirs)
	var prepared []placed
	for _, p := range l.mounts {
		switch {
		case l.goesWithCommand(&p):
			l.files = append(l.files, p)
			continue
		case p.kind == fileMount && len(l.filled) < program.MaxPassed:
			l.filled = append(l.filled, p)
			p.data, p.mode, p.later = nil, 0, true
		}
		prepared = append(prepared, p)
	}
	l.mounts = prepared
	return l
}

// placeDirs finds what the directories lie on that are made for the run's user. In what is bound,
// nothing is made.
func (l *layout) placeDirs(dirs []string) {
	for _, dir := range dirs {
		var on *placed
		for i, p := range l.mounts {
			if p.dst == dir || strings.HasPrefix(dir, p.dst+"/") {
				on = &l.mounts[i]
			}
		}
		switch {
		case on == nil:
			l.owned = append(l.owned, dir)
		case on.kind == tmpfsMount && on.dst != dir:
			l.within = append(l.within, within{dir, on.dst})
		}
	}
}

// goesWithCommand reports whether the run's user can make what is placed: a file on a tmpfs of its
// own, unless in a directory there that the set-up makes and that is root's, such as one with a
// mount point in it.
func (l *layout) goesWithCommand(p *placed) bool {
	if p.kind != fileMount || p.on == nil || p.on.kind != tmpfsMount {
		return false
	}
	for dir := path.Dir(p.dst); dir != p.on.dst; dir = path.Dir(dir) {
		isUsers := slices.ContainsFunc(l.within, func(w within) bool { return w.dir == dir })
		if isUsers {
			return true
		}
		below := dir + "/"
		if slices.ContainsFunc(l.within, func(w within) bool { return strings.HasPrefix(w.dir, below) }) ||
			slices.ContainsFunc(l.mounts, func(m placed) bool { return m.kind != fileMount && strings.HasPrefix(m.dst, below) }) {
			return false
		}
	}
	return true
}

// samePrepared reports whether a run is prepared with the same mounts and files for both.
func (r *rootConfig) samePrepared(o *rootConfig) bool {
	if r.sameMounts(o) {
		return true
	}
	mine, _ := r.split()
	others, _ := o.split()
	return slices.EqualFunc(mine, others, mount.same)
}

// sameWithCommand reports whether the same files go with the command for both.
func (r *rootConfig) sameWithCommand(o *rootConfig) bool {
	if r.sameMounts(o) && slices.Equal(r.dirs, o.dirs) {
		return true
	}
	_, mine := r.split()
	_, others := o.split()
	return slices.EqualFunc(mine, others, mount.same)
}

func (r *rootConfig) sameMounts(o *rootConfig) bool {
	return slices.EqualFunc(r.mounts, o.mounts, mount.same)
}

// split returns what the run is prepared with, and the files that go with the command.
func (r *rootConfig) split() (prepared, withCommand []mount) {
	if !slices.ContainsFunc(r.mounts, func(m mount) bool { return m.kind == fileMount }) {
		return r.mounts, nil
	}
	l := r.layout()
	for _, p := range slices.Concat(l.files, l.filled) {
		withCommand = append(withCommand, p.mount)
	}
	for _, p := range l.mounts {
		if p.index >= 0 {
			prepared = append(prepared, p.mount)
		}
	}
	return prepared, withCommand
}
