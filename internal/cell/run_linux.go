package cell

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// CallError reports a call of a program that failed, or a failed clone for it (SYS_CLONE3).
type CallError struct {
	program.Call
	Errno unix.Errno
}

func (e *CallError) Error() string { return fmt.Sprintf("%s: %v", e.Text, e.Errno) }
func (e *CallError) Unwrap() error { return e.Errno }

// Failure turns a Failed or Refused event of a program into an error.
func Failure(p *program.Program, e program.Event) error {
	if e.Kind == program.Refused {
		return &CallError{program.Call{Number: unix.SYS_CLONE3, Stage: "clone", Text: "clone3"}, unix.Errno(e.Errno)}
	}
	return &CallError{p.Call(int(e.Index)), unix.Errno(e.Errno)}
}

// Block is a run's share of the cell's ids, reserved by Take until Give.
type Block struct {
	c     *Cell
	first int64
	own   bool
	uid   int
	gid   int
}

// Take reserves ids for a run whose user is uid:gid. With own, a rootless cell makes that user the
// caller itself, who owns files outside.
func (c *Cell) Take(uid, gid int, own bool) (*Block, error) {
	if !c.enter() {
		return nil, c.Lost()
	}
	if c.ids.host && !exists(uid, gid) {
		c.busy.Done()
		return nil, fmt.Errorf("the ids %d:%d do not exist in this process's user namespace", uid, gid)
	}
	first, err := c.ids.take()
	if err != nil {
		c.busy.Done()
		return nil, err
	}
	return &Block{c: c, first: first, own: own && c.ids.rootless, uid: uid, gid: gid}, nil
}

// Give returns the ids. No process may have them any more. Close waits for it.
func (b *Block) Give() {
	b.c.ids.give(b.first, b.c.maps.forget)
	b.c.busy.Done()
}

// Spawn asks for a run in a new pid namespace, and in a new user namespace if the cell has one
// itself. t may be nil, and ns, a network namespace for it to begin in.
func (c *Cell) Spawn(p *program.Program, b *Block, t *Template, ns *os.File, files []int) (*forkserver.Conn, error) {
	r := &forkserver.Request{CloneFlags: unix.CLONE_NEWPID, Image: p.Image()}
	if ns != nil {
		r.InNetwork = true
		files = append(slices.Clip(files), int(ns.Fd()))
	}
	if !c.ids.host {
		r.CloneFlags |= unix.CLONE_NEWUSER
		r.UIDMap = c.ids.runMap(b.first, int64(b.uid), b.own)
		r.GIDMap = c.ids.runMap(b.first, int64(b.gid), b.own)
	}
	if t != nil {
		r.Tree = t.Path
	}
	return c.send(r, files)
}

// Join asks for a clone that enters a live run by the files.
func (c *Cell) Join(p *program.Program, files []int) (*forkserver.Conn, error) {
	return c.send(&forkserver.Request{Image: p.Image()}, files)
}

func (c *Cell) send(r *forkserver.Request, files []int) (*forkserver.Conn, error) {
	conn, err := c.client.Send(r, files)
	if err != nil {
		return nil, c.explain(err)
	}
	return conn, nil
}

// explain turns an error of the control socket, or the end of a task that reported nothing, into
// ErrLost if the end of the cell caused it.
func (c *Cell) explain(err error) error {
	switch {
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, os.ErrClosed), errors.Is(err, io.EOF) && c.DiesNow():
		return c.Lost()
	case errors.Is(err, io.EOF):
		return errors.New("a process of the cell ended without a word")
	}
	return err
}

// Task runs a program in the cell itself and waits for its end. It returns the file that the
// program sent with its last event, if any.
func (c *Cell) Task(p *program.Program, files []int) (*os.File, error) {
	file, err := task(c.client, p, files)
	var call *CallError
	if err != nil && !errors.As(err, &call) {
		err = c.explain(err)
	}
	return file, err
}

func task(client *forkserver.Client, p *program.Program, files []int) (result *os.File, err error) {
	conn, err := client.Send(&forkserver.Request{Image: p.Image()}, files)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for {
		m, err := conn.Next()
		if err != nil {
			if result != nil {
				result.Close()
			}
			return nil, err
		}
		if m.Kind == program.Ready {
			result = m.File
		} else if m.File != nil {
			m.File.Close()
		}
		switch m.Kind {
		case program.Finished:
			return result, nil
		case program.Failed, program.Refused:
			return nil, Failure(p, m.Event)
		}
	}
}

// idmaps caches user namespaces that only serve to say how a mount's owners are mapped: by block,
// and then by who is mapped to whom.
type idmaps struct {
	mu    sync.Mutex
	files map[int64]map[owners]*os.File
}

type owners struct {
	uid, gid uint32 // outside
	user     int    // inside the run
	group    int
	all      bool // all owners, to the same ids inside
}

func (m *idmaps) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, files := range m.files {
		closeAll(files)
	}
	m.files = nil
}

// forget drops the namespaces of a block that the cell no longer has.
func (m *idmaps) forget(block int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	closeAll(m.files[block])
	delete(m.files, block)
}

func closeAll(files map[owners]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// idmap returns a user namespace that maps owners of host files to the block's ids.
func (c *Cell) idmap(b *Block, o owners) (*os.File, error) {
	c.maps.mu.Lock()
	defer c.maps.mu.Unlock()
	if f := c.maps.files[b.first][o]; f != nil {
		return f, nil
	}
	uidMap := fmt.Sprintf("%d %d 1\n", o.uid, c.ids.userID(b.first, int64(o.user)))
	gidMap := fmt.Sprintf("%d %d 1\n", o.gid, c.ids.userID(b.first, int64(o.group)))
	if o.all {
		uidMap = c.ids.runMap(b.first, 0, false)
		gidMap = uidMap
	}
	f, err := c.newIDMap(uidMap, gidMap)
	if err != nil {
		return nil, err
	}
	if c.maps.files == nil {
		c.maps.files = map[int64]map[owners]*os.File{}
	}
	if c.maps.files[b.first] == nil {
		c.maps.files[b.first] = map[owners]*os.File{}
	}
	c.maps.files[b.first][o] = f
	return f, nil
}

// newIDMap clones a child that only waits in the namespace until this process has opened it.
func (c *Cell) newIDMap(uidMap, gidMap string) (*os.File, error) {
	b := program.NewBuilder()
	gate := b.File("gate")
	b.Wait(gate)
	b.Event(program.Ready)
	b.Wait(program.Report)
	p, err := b.Program()
	if err != nil {
		return nil, err
	}
	conn, err := c.send(&forkserver.Request{CloneFlags: unix.CLONE_NEWUSER, UIDMap: uidMap, GIDMap: gidMap, Image: p.Image()}, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for {
		m, err := conn.Next()
		if err != nil {
			return nil, c.explain(err)
		}
		if m.File != nil {
			m.File.Close()
		}
		switch m.Kind {
		case program.Ready:
			f, err := os.Open("/proc/" + strconv.Itoa(m.PID) + "/ns/user")
			if err != nil && c.DiesNow() { // the child waits, so it has not ended by itself
				err = c.Lost()
			}
			return f, err
		case program.Failed, program.Refused:
			return nil, Failure(p, m.Event)
		}
	}
}
