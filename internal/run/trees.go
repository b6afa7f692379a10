//go:build linux

package run

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/scratch"
)

// sources identifies the directories and files of the host that are now at the paths of a plan's
// trees.
type sources struct {
	template string // with the template's program: identifies the template
	files    string
}

func findSources(p *compile.Plan) (src sources, err error) {
	if src.template, err = appendSources(p.Key[:], p.Trees); err == nil {
		src.files, err = appendSources(nil, p.Files)
	}
	return src, err
}

func appendSources(key []byte, trees []compile.Tree) (string, error) {
	for _, t := range trees {
		if t.From != nil {
			key = fmt.Appendf(key, "\x00%p", t.From)
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(t.Path, &st); err != nil {
			return "", t.Of.Wrong("%w", &os.PathError{Op: "stat", Path: t.Path, Err: err})
		}
		key = fmt.Appendf(key, "\x00%s\x00%d:%d", t.Path, st.Dev, st.Ino)
		if t.MapOwner { // the mapping depends on who owns the tree
			key = fmt.Appendf(key, ":%d:%d", st.Uid, st.Gid)
		}
	}
	return string(key), nil
}

// openTrees opens the trees of a program that is sent to the cell, for a run whose ids are those of
// the block.
func openTrees(c *cell.Cell, m *compile.Machine, trees []compile.Tree, b *cell.Block) (files []*os.File, err error) {
	for _, t := range trees {
		want := cell.Tree{Path: t.Path, Writable: t.Writable, Partial: t.Partial}
		if (t.MapOwner || t.MapAll) && !c.Rootless() {
			want.Owner, want.AllIDs = b, t.MapAll
		}
		if t.From != nil {
			s, err := t.From.(scratch.Source).Get()
			if err != nil {
				return files, t.Of.Wrong("%w", err)
			}
			if t.Root && !c.WideIDs() {
				return files, &fault.SetupError{Stage: t.Of.String(), Err: errors.New("it takes ids of its own for each run, 65536 of them"), Hint: "run this program as root, or use WithWritableRoot"}
			}
			if err := s.Use(t.Root); err != nil {
				return files, &fault.SetupError{Stage: t.Of.String(), Err: err, Hint: "a scratch for each use"}
			}
			want.Scratch = s.Mount()
		} else if t.MapOwner && !t.MapIfCan && c.Rootless() {
			if err := ownFile(t.Path); err != nil {
				return files, &fault.SetupError{Stage: t.Of.String(), Err: err, Hint: "bind what belongs to this user, or use WithReadOnlyBind"}
			}
		}
		f, err := c.Open(want)
		if want.Owner != nil && t.MapIfCan && errors.Is(err, cell.ErrNoIDMap) {
			want.Owner = nil
			f, err = c.Open(want)
		}
		if errors.Is(err, cell.ErrNoIDMap) {
			err = &fault.SetupError{Stage: t.Of.String(), Err: err,
				Hint: NoIDMapHint(t, m)}
		} else if err != nil && !errors.Is(err, cell.ErrLost) {
			err = &fault.SetupError{Stage: t.Of.String(), Err: err}
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// NoIDMapHint returns what to do about a tree whose owners can't be mapped.
func NoIDMapHint(t compile.Tree, m *compile.Machine) string {
	switch {
	case t.Root:
		return "Linux 6.3 or later, or WithWritableRoot"
	case t.From != nil:
		return "Linux 6.3 or later, or WithReadOnlyScratch, or WithBind of a directory"
	case !m.HasSetAttr():
		return "Linux 5.12 or later, or WithReadOnlyBind"
	}
	return "bind a directory on ext4, xfs, btrfs or (from Linux 6.3) tmpfs"
}

// ownFile returns an error if an ordinary user can't bind the path: without an idmapped mount only
// the user's own files belong to the run's user.
func ownFile(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to uid %d, not to this user, %d", path, st.Uid, os.Geteuid())
	}
	return nil
}
