package cell

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Template is an assembled root in the cell, of which runs mount copies.
type Template struct {
	Path string

	owner    *templates
	key      string
	ready    chan struct{}
	err      error
	users    int
	lastUsed int64
}

// templates are the templates of one cell. Their number is bounded, because every run's mount
// namespace begins as a copy of the cell's.
type templates struct {
	mu   sync.Mutex
	all  map[string]*Template
	tick int64
	next int
}

const maxTemplates = 16

// Template returns the template with the given key. If it is new, the programs first (if not nil)
// and p assemble it, and open returns the files for p. The caller calls Release once it has its
// copy.
func (c *Cell) Template(key string, first, p *program.Program, open func() ([]*os.File, error)) (*Template, error) {
	t, isNew, evicted := c.templates.get(key)
	for _, e := range evicted {
		c.removeTemplate(e)
	}
	if isNew {
		t.err = c.makeTemplate(t, first, p, open)
		close(t.ready)
	}
	<-t.ready
	if t.err != nil {
		c.templates.drop(t)
		return nil, t.err
	}
	return t, nil
}

// Release gives up the caller's use of the template.
func (t *Template) Release() {
	t.owner.mu.Lock()
	t.users--
	t.owner.mu.Unlock()
}

func (ts *templates) get(key string) (t *Template, isNew bool, evicted []*Template) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.tick++
	if t = ts.all[key]; t == nil {
		if ts.all == nil {
			ts.all = map[string]*Template{}
		}
		for len(ts.all) >= maxTemplates {
			oldest := ts.oldestUnused()
			if oldest == nil {
				break
			}
			delete(ts.all, oldest.key)
			evicted = append(evicted, oldest)
		}
		t = &Template{Path: fmt.Sprintf("%s/%d", program.CellTemplates, ts.next), owner: ts, key: key, ready: make(chan struct{})}
		ts.next++
		ts.all[key] = t
		isNew = true
	}
	t.users++
	t.lastUsed = ts.tick
	return t, isNew, evicted
}

func (ts *templates) oldestUnused() (oldest *Template) {
	for _, t := range ts.all {
		if t.users == 0 && (oldest == nil || t.lastUsed < oldest.lastUsed) {
			oldest = t
		}
	}
	return oldest
}

// drop forgets a template that could not be made, so that a later run tries again.
func (ts *templates) drop(t *Template) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.users--
	if ts.all[t.key] == t {
		delete(ts.all, t.key)
	}
}

// makeTemplate runs the programs, which leave the root at program.CellStaging, and moves
// it to its place.
func (c *Cell) makeTemplate(t *Template, first, p *program.Program, open func() ([]*os.File, error)) error {
	files, err := open()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	c.staging.Lock()
	defer c.staging.Unlock()
	if first != nil {
		_, err = c.Task(first, nil)
	}
	if err == nil {
		_, err = c.Task(p, fds)
	}
	if err != nil {
		c.unmount(program.CellStaging, program.CellChanges)
		return err
	}
	b := program.NewBuilder()
	b.Stage("root file system")
	b.Mkdir(program.AtCWD, t.Path, 0o755)
	b.Call("move_mount", unix.SYS_MOVE_MOUNT, program.AtCWD, b.Str(program.CellStaging), program.AtCWD, b.Str(t.Path), program.Int(0))
	move, err := b.Program()
	if err != nil {
		return err
	}
	if _, err = c.Task(move, nil); err != nil {
		c.unmount(program.CellStaging, t.Path)
	}
	return err
}

// unmount unmounts all that is mounted at the paths.
func (c *Cell) unmount(paths ...string) {
	b := program.NewBuilder()
	for _, p := range paths {
		b.CallMaybe("umount2", unix.SYS_UMOUNT2, b.Str(p), program.Int(unix.MNT_DETACH, "MNT_DETACH"))
	}
	for _, p := range paths {
		if filepath.Dir(p) == program.CellTemplates {
			b.CallMaybe("unlinkat", unix.SYS_UNLINKAT, program.AtCWD, b.Str(p), program.Int(unix.AT_REMOVEDIR, "AT_REMOVEDIR"))
		}
	}
	if p, err := b.Program(); err == nil {
		_, _ = c.Task(p, nil)
	}
}

func (c *Cell) removeTemplate(t *Template) { c.unmount(t.Path) }
