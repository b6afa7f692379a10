package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/fault"
)

// tree is a host directory or file that accompanies a program, or a scratch.
type tree struct {
	path     string
	from     scratchSource // in place of path
	writable bool
	mapOwner bool
	mapAll   bool          // rather than the owner alone
	root     bool          // from takes the changes of a root
	partial  bool          // go on without what is mounted below where that can't be had
	mapIfCan bool          // go on without the mapping where it is not possible
	of       fault.Subject // what to name in an error
}

// sources is which directories and files of the host are now found at the paths of a plan's trees.
type sources struct {
	template string // with the template's program: tells templates apart
	files    string
}

func (p *plan) sources() (src sources, err error) {
	if src.template, err = appendSources(p.key[:], p.trees); err == nil {
		src.files, err = appendSources(nil, p.files)
	}
	return src, err
}

func appendSources(key []byte, trees []tree) (string, error) {
	for _, t := range trees {
		if t.from != nil {
			key = fmt.Appendf(key, "\x00%p", t.from)
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(t.path, &st); err != nil {
			return "", t.of.Wrong("%w", &os.PathError{Op: "stat", Path: t.path, Err: err})
		}
		key = fmt.Appendf(key, "\x00%s\x00%d:%d", t.path, st.Dev, st.Ino)
		if t.mapOwner { // that depends on who owns it
			key = fmt.Appendf(key, ":%d:%d", st.Uid, st.Gid)
		}
	}
	return string(key), nil
}

func openTrees(c *cell.Cell, trees []tree, b *cell.Block) (files []*os.File, err error) {
	for _, t := range trees {
		want := cell.Tree{Path: t.path, Writable: t.writable, Partial: t.partial}
		if (t.mapOwner || t.mapAll) && !c.Rootless() {
			want.Owner, want.AllIDs = b, t.mapAll
		}
		if t.from != nil {
			s, err := t.from.get()
			if err != nil {
				return files, t.of.Wrong("%w", err)
			}
			if t.root && !c.WideIDs() {
				return files, &SetupError{Stage: t.of.String(), Err: errors.New("it takes ids of its own for each run, 65536 of them"), Hint: "run this program as root, or use WithWritableRoot"}
			}
			if err := s.use.as(t.root); err != nil {
				return files, &SetupError{Stage: t.of.String(), Err: err, Hint: "a scratch for each use"}
			}
			want.Scratch = s.impl.Scratch
		} else if t.mapOwner && !t.mapIfCan && c.Rootless() {
			if err := ownFile(t.path); err != nil {
				return files, &SetupError{Stage: t.of.String(), Err: err, Hint: "bind what belongs to this user, or use WithReadOnlyBind"}
			}
		}
		f, err := c.Open(want)
		if want.Owner != nil && t.mapIfCan && errors.Is(err, cell.ErrNoIDMap) {
			want.Owner = nil
			f, err = c.Open(want)
		}
		if errors.Is(err, cell.ErrNoIDMap) {
			err = &SetupError{Stage: t.of.String(), Err: err,
				Hint: noIDMapHint(t)}
		} else if err != nil && !errors.Is(err, cell.ErrLost) {
			err = &SetupError{Stage: t.of.String(), Err: err}
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func noIDMapHint(t tree) string {
	switch {
	case t.root:
		return "Linux 6.3 or later, or WithWritableRoot"
	case t.from != nil:
		return "Linux 6.3 or later, or WithReadOnlyScratch, or WithBind of a directory"
	case !thisMachine().hasSetAttr():
		return "Linux 5.12 or later, or WithReadOnlyBind"
	}
	return "bind a directory on ext4, xfs, btrfs or (from Linux 6.3) tmpfs"
}

// ownFile refuses what an ordinary user can't bind: without an idmapped mount only
// its own files change hands with the run.
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
