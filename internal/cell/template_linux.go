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

// Assembly is a program that puts together what is at program.CellStaging. Open returns the files
// that accompany it; they are closed once the program has them.
type Assembly struct {
	Program *program.Program
	Open    func() ([]*os.File, error)
}

// Template returns the template with the given key. If it is new, rest assembles it, on what base
// leaves, if that is not nil. The caller calls Release once it has its copy.
func (c *Cell) Template(key string, base *Assembly, rest Assembly) (*Template, error) {
	t, isNew, evicted := c.templates.get(key)
	for _, e := range evicted {
		c.removeTemplate(e)
	}
	if isNew {
		t.err = c.makeTemplate(t, base, rest)
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

// any reports whether there are templates, or some are being made.
func (ts *templates) any() bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.all) > 0
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

// AssembleAhead assembles the base of a template, so that the first template with that base finds
// it there. It does nothing if there are templates already, and leaves an error to them.
func (c *Cell) AssembleAhead(base Assembly) {
	c.assembling.Lock()
	defer c.assembling.Unlock()
	if c.templates.any() {
		return
	}
	if c.assemble(base) == nil {
		c.ahead = base.Program
	} else {
		c.unmount(program.CellStaging)
	}
}

// makeTemplate has the template assembled at program.CellStaging, and moves it to its place.
func (c *Cell) makeTemplate(t *Template, base *Assembly, rest Assembly) error {
	c.assembling.Lock()
	defer c.assembling.Unlock()
	var err error
	if !c.takeAhead(base) && base != nil {
		err = c.assemble(*base)
	}
	if err == nil {
		err = c.assemble(rest)
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

// takeAhead reports whether the base is there already. Another that is there goes.
func (c *Cell) takeAhead(base *Assembly) bool {
	ahead := c.ahead
	c.ahead = nil
	if ahead != nil && (base == nil || base.Program != ahead) {
		c.unmount(program.CellStaging)
		return false
	}
	return ahead != nil
}

// assemble runs the program with its files.
func (c *Cell) assemble(a Assembly) error {
	files, err := a.Open()
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
	_, err = c.Task(a.Program, fds)
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
