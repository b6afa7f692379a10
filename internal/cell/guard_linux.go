package cell

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// guards are processes in the cell that each do one last thing before the cell ends.
type guards struct {
	mu    sync.Mutex
	all   map[*guard]struct{}
	fired bool // the cell is being closed
}

type guard struct {
	conn  *forkserver.Conn
	pidfd *os.File
}

// AtEnd writes data to the file when this process ends, however it does, or closes the cell, before
// anything in the cell ends. stop calls that off; it returns once the file can't be written to any
// more.
//
// A process in the cell does this: it waits for the end of this process. It also holds this
// process's end of the control socket, so the fork server goes on until it is done.
func (c *Cell) AtEnd(f *os.File, data string) (stop func(), err error) {
	b := program.NewBuilder()
	b.File("this process's end of the control socket")
	to := b.File(f.Name())
	// The fork server's own end must be closed: otherwise nobody would see that the fork server
	// has ended.
	b.Call("close", unix.SYS_CLOSE, program.Int(forkserver.ControlFD))
	b.CallMaybe("read", unix.SYS_READ, program.Use(program.Report), b.Bytes(make([]byte, 8), "buf"), program.Int(1))
	b.Call("write", unix.SYS_WRITE, program.Use(to), b.Str(data), program.Int(len(data)))
	p, err := b.Program()
	if err != nil {
		return nil, err
	}
	control, err := c.client.Dup()
	if err != nil {
		return nil, c.explain(err)
	}
	defer control.Close()
	conn, err := c.send(&forkserver.Request{Image: p.Image()}, []int{int(control.Fd()), int(f.Fd())})
	if err != nil {
		return nil, err
	}
	m, err := conn.Next()
	if err == nil && m.Kind != program.Cloned {
		err = Failure(p, m.Event)
		if m.File != nil {
			m.File.Close()
		}
	}
	if err != nil {
		conn.Close()
		return nil, c.explain(err)
	}
	g := &guard{conn: conn, pidfd: m.File}
	if !c.guards.add(g) {
		g.close()
		return nil, c.Lost()
	}
	return func() { c.guards.stop(g) }, nil
}

// close gives up the guard. If it still waits, it does its last thing.
func (g *guard) close() {
	g.conn.Close()
	g.pidfd.Close()
}

// add returns false if the cell is being closed, since that would wait for the guard forever.
func (gs *guards) add(g *guard) bool {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.fired {
		return false
	}
	if gs.all == nil {
		gs.all = map[*guard]struct{}{}
	}
	gs.all[g] = struct{}{}
	return true
}

func (gs *guards) stop(g *guard) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if _, ok := gs.all[g]; !ok {
		return
	}
	delete(gs.all, g)
	fd := int(g.pidfd.Fd())
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // fails if it has ended with the cell
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	g.close()
}

// fire makes all of them do their last thing.
func (gs *guards) fire() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for g := range gs.all {
		g.close()
	}
	gs.all, gs.fired = nil, true
}
