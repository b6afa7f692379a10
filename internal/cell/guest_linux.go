package cell

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/wall"
)

// A cell of gVisor has no container and no fork server: each of its runs, a guest, is a container
// with a kernel of its own. What it has are the cgroups, a place for the guests' files, and its
// end.

// guests is what a cell of gVisor has.
type guests struct {
	runtime *wall.Command // nil for other cells
	mu      sync.Mutex
	kill    map[int]func()
	next    int
	layers  map[string]string
}

// GuestRuntime returns what makes the guests, or nil if a fork server makes the cell's runs.
func (c *Cell) GuestRuntime() *wall.Command { return c.guests.runtime }

// Guest is the place of a guest in its cell.
type Guest struct {
	ID, Dir string
	c       *Cell
	number  int
}

// EnterGuest makes a place for a guest, which kill ends.
func (c *Cell) EnterGuest(kill func()) (*Guest, error) {
	if !c.enter() {
		return nil, c.Lost()
	}
	p, err := c.enterGuest(kill)
	if err != nil {
		c.busy.Done()
	}
	return p, err
}

func (c *Cell) enterGuest(kill func()) (*Guest, error) {
	g := &c.guests
	g.mu.Lock()
	defer g.mu.Unlock()
	if !c.Alive() { // endGuests was faster
		return nil, c.Lost()
	}
	g.next++
	p := &Guest{ID: fmt.Sprintf("%s-%d", c.state.id, g.next), Dir: filepath.Join(c.state.dir, fmt.Sprintf("guest-%d", g.next)), c: c, number: g.next}
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		return nil, err
	}
	if g.kill == nil {
		g.kill = map[int]func(){}
	}
	g.kill[p.number] = kill
	return p, nil
}

// Leave removes the guest's files. Nothing of it may live any more.
func (p *Guest) Leave() error {
	p.c.guests.mu.Lock()
	delete(p.c.guests.kill, p.number)
	p.c.guests.mu.Unlock()
	defer p.c.busy.Done()
	return os.RemoveAll(p.Dir)
}

// endGuests kills all guests. None can enter any more.
func (c *Cell) endGuests() {
	g := &c.guests
	g.mu.Lock()
	defer g.mu.Unlock()
	close(c.done) // first: these runs are lost with their cell
	for _, kill := range g.kill {
		kill()
	}
}

// GuestLayer returns a directory that guests have in their roots, which fill makes once in the life
// of the cell.
func (c *Cell) GuestLayer(name string, fill func(dir *os.Root) error) (string, error) {
	g := &c.guests
	g.mu.Lock()
	defer g.mu.Unlock()
	if dir, ok := g.layers[name]; ok {
		return dir, nil
	}
	dir := filepath.Join(c.state.dir, "layer-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(dir)
	if err == nil {
		err = errors.Join(root.Chmod(".", 0o755), fill(root), root.Close())
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	if g.layers == nil {
		g.layers = map[string]string{}
	}
	g.layers[name] = dir
	return dir, nil
}

// guestPlace is where guests have this program's own file, for root alone. The directory hides one
// of that name in an image, whose libraries the loader could prefer.
const guestPlace = "/.sandbox"

// OwnInGuest puts this program's own file with its libraries into a layer and returns the command
// line by which a guest executes it.
func (c *Cell) OwnInGuest() (layer string, args []string, err error) {
	exe, err := os.Open(ownPath)
	if err != nil {
		return "", nil, err
	}
	defer exe.Close()
	loader, err := interpreter(exe)
	if err != nil {
		return "", nil, err
	}
	program := path.Join(guestPlace, "program")
	args = []string{program}
	var libs []string
	if loader != "" {
		args = []string{path.Join(guestPlace, "loader"), "--library-path", guestPlace, program}
		if libs, err = mappedLibraries(); err != nil {
			return "", nil, err
		}
	}
	layer, err = c.GuestLayer("own", func(dir *os.Root) error {
		err := makeOpaque(dir, guestPlace[1:])
		if err != nil {
			return err
		}
		err = copyTo(dir, program, ownPath)
		if loader != "" {
			err = errors.Join(err, putLoader(dir, args[0], loader))
		}
		for _, l := range libs {
			err = errors.Join(err, copyTo(dir, path.Join(guestPlace, neededAs(l)), l))
		}
		return err
	})
	return layer, args, err
}

// makeOpaque makes a directory which, in an overlay, nothing of the layers below is in.
func makeOpaque(dir *os.Root, name string) error {
	if err := dir.Mkdir(name, 0o700); err != nil {
		return err
	}
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("fsetxattr", unix.Fsetxattr(int(f.Fd()), "trusted.overlay.opaque", []byte("y"), 0))
}

// putLoader copies the loader and has the copy look for the list of libraries that are in every
// process, which in an image is anybody's, where there is none.
func putLoader(dir *os.Root, at, from string) error {
	// Both are of one length.
	const list, none = "/etc/ld.so.preload\x00", guestPlace + "/preload\x00\x00"
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return dir.WriteFile(at[1:], bytes.ReplaceAll(b, []byte(list), []byte(none)), 0o500)
}

// copyTo copies a file of the host, if it is not there yet: libraries may have one name.
func copyTo(dir *os.Root, at, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dir.OpenFile(at[1:], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o500)
	if errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
