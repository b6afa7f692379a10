package spec

import (
	"cmp"
	"path"
	"slices"
	"strings"
)

// Layout is what is put at which place of a root.
type Layout struct {
	Mounts  []Placed // parents before children
	Files   []Placed // of WithFile that the command's program makes: the run is prepared without them
	Filled  []Placed // those of Mounts that the run is prepared with, except for their content
	Mkdirs  []string // mount points that the root itself must have
	Mkfiles []string // those of them that are files
	Owned   []string // directories of the run's user that the root is to have
	Within  []Within // and those that lie on a tmpfs
	Sys     bool     // /sys is ours
}

// MaxFilled is the most files that a run is prepared with and gets the content of later.
const MaxFilled = 64

// Within is a directory that lies on a mount.
type Within struct{ Dir, On string }

// Placed is a mount and what its mount point lies on.
type Placed struct {
	Mount
	Index    int    // in Root.Mounts, -1 for a default
	Perm     string // of a tmpfs
	OntoFile bool   // the mount point is a file
	Later    bool   // a file whose content the command's program writes
	On       *Placed
}

// Found is what a layout depends on besides the options.
type Found struct {
	Files map[int]bool // by their index: the mounts whose source is no directory
	NoSys bool         // there is no place for /sys
}

// Layout arranges the options' mounts and the default ones around them.
func (r *Root) Layout(found Found) *Layout {
	all := r.placed(found)
	l := &Layout{Mkdirs: []string{"/proc", "/dev"}, Sys: !found.NoSys}
	for _, p := range all { // who puts something there has it to himself
		l.Sys = l.Sys && !IsIn(p.Dst, "/sys")
	}
	if l.Sys {
		l.Mkdirs = append(l.Mkdirs, "/sys")
	}
	for i, p := range all {
		for _, above := range all[:i] {
			if !above.IsFile() && isBelow(p.Dst, above.Dst) {
				p.On = above // the last one found is the deepest
			}
		}
		switch {
		case p.On != nil || p.IsFile() || isBelow(p.Dst, "/dev"):
		case p.OntoFile:
			l.Mkfiles = append(l.Mkfiles, p.Dst)
		default:
			l.Mkdirs = append(l.Mkdirs, p.Dst)
		}
	}
	for _, p := range all {
		l.Mounts = append(l.Mounts, *p)
	}
	l.placeDirs(r.Dirs)
	l.divide()
	return l
}

// placed returns all mounts with their places, parents before children.
func (r *Root) placed(found Found) (all []*Placed) {
	links := r.Links()
	for i, m := range r.Mounts {
		m.Dst = links.Place(m)
		p := &Placed{Mount: m, Index: i, Perm: "0755", OntoFile: found.Files[i]}
		if m.Dst == "/tmp" || m.Dst == "/dev/shm" {
			p.Perm = "1777"
		}
		all = append(all, p)
	}
	for _, d := range []struct{ dst, mode string }{{"/tmp", "1777"}, {"/dev/shm", "1777"}, {HomeDir, "0700"}} {
		replaced := slices.ContainsFunc(all, func(p *Placed) bool {
			return p.Dst == d.dst || p.IsGiven() && isBelow(d.dst, p.Dst)
		})
		if !replaced {
			all = append(all, &Placed{Mount: Mount{d.dst, Tmpfs{DefaultTmpfs}}, Index: -1, Perm: d.mode})
		}
	}
	slices.SortFunc(all, func(a, b *Placed) int {
		return cmp.Or(cmp.Compare(strings.Count(a.Dst, "/"), strings.Count(b.Dst, "/")), cmp.Compare(a.Dst, b.Dst))
	})
	return all
}

// divide takes out of the mounts what goes with the command.
func (l *Layout) divide() {
	var prepared []Placed
	for _, p := range l.Mounts {
		switch {
		case l.goesWithCommand(&p):
			l.Files = append(l.Files, p)
			continue
		case p.IsFile() && len(l.Filled) < MaxFilled:
			l.Filled = append(l.Filled, p)
			p.Source, p.Later = File{}, true
		}
		prepared = append(prepared, p)
	}
	l.Mounts = prepared
}

// placeDirs finds what the directories lie on that are made for the run's user. In what is bound,
// nothing is made.
func (l *Layout) placeDirs(dirs []string) {
	for _, dir := range dirs {
		var on *Placed
		for i, p := range l.Mounts {
			if IsIn(dir, p.Dst) {
				on = &l.Mounts[i]
			}
		}
		switch {
		case on == nil:
			l.Owned = append(l.Owned, dir)
		case on.IsTmpfs() && on.Dst != dir:
			l.Within = append(l.Within, Within{dir, on.Dst})
		}
	}
}

// goesWithCommand reports whether the run's user can make what is placed: a file on a tmpfs of its
// own, unless in a directory there that the set-up makes and that is root's, such as one with a
// mount point in it.
func (l *Layout) goesWithCommand(p *Placed) bool {
	if !p.IsFile() || p.On == nil || !p.On.IsTmpfs() {
		return false
	}
	for dir := path.Dir(p.Dst); dir != p.On.Dst; dir = path.Dir(dir) {
		if slices.ContainsFunc(l.Within, func(w Within) bool { return w.Dir == dir }) {
			return true // it is the user's
		}
		if slices.ContainsFunc(l.Within, func(w Within) bool { return isBelow(w.Dir, dir) }) ||
			slices.ContainsFunc(l.Mounts, func(m Placed) bool { return !m.IsFile() && isBelow(m.Dst, dir) }) {
			return false
		}
	}
	return true
}

// samePrepared reports whether runs are prepared with the same root for both.
func (r *Root) samePrepared(o *Root) bool {
	if r.Equal(o) {
		return true
	}
	mine, _ := r.split()
	others, _ := o.split()
	return mine.Equal(&others)
}

// sameWithCommand reports whether the same files go with the command for both.
func (r *Root) sameWithCommand(o *Root) bool {
	if r.Equal(o) {
		return true
	}
	if !slices.ContainsFunc(r.Mounts, Mount.IsFile) && !slices.ContainsFunc(o.Mounts, Mount.IsFile) {
		return true
	}
	_, mine := r.split()
	_, others := o.split()
	return slices.Equal(mine, others)
}

// taken is a file that goes with the command, and how.
type taken struct {
	Mount
	on     string // the tmpfs on which the command makes it
	filled bool   // the run is prepared with it, except for its content
}

// split returns the root as a run is prepared with it, in an order that does not depend on that of
// the options, and the files that go with the command.
func (r *Root) split() (prepared Root, withCommand []taken) {
	l := r.Layout(Found{})
	for _, p := range l.Files {
		withCommand = append(withCommand, taken{Mount: p.Mount, on: p.On.Dst})
	}
	for _, p := range l.Filled {
		withCommand = append(withCommand, taken{Mount: p.Mount, filled: true})
	}
	prepared = *r
	prepared.Mounts = nil
	for _, p := range l.Mounts {
		if p.Index >= 0 {
			prepared.Mounts = append(prepared.Mounts, p.Mount)
		}
	}
	return prepared, withCommand
}
