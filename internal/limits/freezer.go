//go:build linux

package limits

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// freezer is the file that freezes a cgroup. The zero value is for a cgroup that has none.
type freezer struct {
	dir string
	v2  bool
}

// freezerOf returns the freezer of dir. In v1, only directories of the freezer's hierarchy have
// one.
func freezerOf(dir string) freezer {
	switch {
	case exists(dir + "/cgroup.freeze"):
		return freezer{dir, true}
	case exists(dir + "/freezer.state"):
		return freezer{dir, false}
	}
	return freezer{}
}

func (f freezer) set(frozen bool) error {
	switch {
	case f.dir == "":
		return nil
	case f.v2 && frozen:
		return writeFile(f.dir+"/cgroup.freeze", "1")
	case f.v2:
		return writeFile(f.dir+"/cgroup.freeze", "0")
	case frozen:
		return writeFile(f.dir+"/freezer.state", "FROZEN")
	}
	return writeFile(f.dir+"/freezer.state", Thawed)
}

// frozen reports whether every process has stopped.
func (f freezer) frozen() (bool, error) {
	var buf [128]byte
	if f.v2 {
		data, err := readFile(f.dir+"/cgroup.events", buf[:])
		return keyed(data, "frozen") == 1, err
	}
	data, err := readFile(f.dir+"/freezer.state", buf[:])
	return bytes.HasPrefix(data, []byte("FROZEN")), err // otherwise FREEZING or THAWED
}

// Freeze stops every process of the run and returns when all of them have stopped. If ctx ends
// first, or Thaw or Kill is called meanwhile, they go on and Freeze returns an error.
func (g *Group) Freeze(ctx context.Context) error {
	if g.freezer.dir == "" {
		return fmt.Errorf("cgroup %s can't be frozen: the v1 freezer controller is not mounted", g.path)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", g.path, err)
	}
	g.mu.Lock()
	g.freezing = true
	g.mu.Unlock()
	delay := 20 * time.Microsecond
	for try := 1; ; try++ {
		thaw := !g.freezer.v2 && try%50 == 0
		done, err := g.freezeStep(!thaw)
		if done || err != nil {
			return err
		}
		delay = min(2*delay, 5*time.Millisecond)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(fmt.Errorf("freeze cgroup %s: %w", g.path, ctx.Err()), g.Thaw())
		}
	}
}

// freezeStep asks for the freeze, or for an end of it, and looks at the result. v1 can get stuck in
// FREEZING, such as with a process that executes programs all the time. Asking again gets it out,
// or else, as in libcontainer, a short thaw now and then. Kill thaws under the same lock: asking
// again after that would keep v1's processes from dying.
func (g *Group) freezeStep(freeze bool) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.killed || !g.freezing {
		return false, fmt.Errorf("freeze cgroup %s: thawed or killed meanwhile", g.path)
	}
	if err := g.freezer.set(freeze); err != nil {
		return false, err
	}
	return g.freezer.frozen()
}

// Thaw lets a frozen run go on. It does nothing if the run is not frozen.
func (g *Group) Thaw() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.freezing = false
	return g.freezer.set(false)
}

// ThawFile opens the file to which writing Thawed lets a frozen run go on. It returns nil on v2,
// where a frozen process can be killed and nobody needs the file.
func (g *Group) ThawFile() (*os.File, error) {
	if g.freezer.dir == "" || g.freezer.v2 {
		return nil, nil
	}
	return os.OpenFile(g.freezer.dir+"/freezer.state", os.O_WRONLY, 0)
}

// Thawed is the content of v1's freezer.state that lets processes go on.
const Thawed = "THAWED"

// Kill sends SIGKILL to every process of the run, frozen or not. It does not wait for their end.
// Afterwards the group can't be frozen again. On v1, and before Linux 5.14, a child whose fork was
// almost done escapes: Delete kills again until no process is left.
func (g *Group) Kill() error {
	g.mu.Lock()
	g.killed = true
	g.mu.Unlock()
	if g.v2 != "" {
		err := writeFile(g.v2+"/cgroup.kill", "1")
		if err == nil || !gone(err) {
			return err
		}
		// Removed already, or a kernel before Linux 5.14.
	}
	err := killMembers(g.dirs)
	if errors.Is(err, errForking) {
		if err = g.freezer.set(true); err == nil {
			err = killMembers(g.dirs)
		}
	}
	// v1 keeps a frozen process even from SIGKILL.
	if thaw := g.Thaw(); !gone(thaw) {
		err = errors.Join(err, thaw)
	}
	return err
}
