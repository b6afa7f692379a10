//go:build linux

package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
)

// recipe is what a run is prepared from.
type recipe struct {
	engine  *Engine
	cell    *cell.Cell
	plan    *compile.Plan
	limits  limits.Spec
	sources sources
	// inNetwork is the plan's program for a run that begins in a network namespace of the cell,
	// nil if it may not.
	inNetwork *program.Program
}

// clone is the processes of a run with all that they have in the cell and the kernel, from the
// clone of PID 1 until release. Until its command is executed, any start that needs a run like it
// can use it.
type clone struct {
	recipe
	// spec is what the run is prepared for, and later the one whose command it executes.
	spec    *spec.Spec
	command *program.Program // set when it is handed over

	program *program.Program // the run's: of the plan, or inNetwork
	network *cell.Network    // that the run begins in, nil if it is of its own making

	block  *cell.Block
	group  *limits.Group
	upper  *scratch.Scratch // for the changes of the run's root
	conn   *forkserver.Conn
	init   *os.File // pidfd of PID 1
	mounts *os.File // the mount namespace
	pid    int      // of the command
	pidfd  *os.File // of the command
	member *gateway.Member
	alone  *gateway.Network // the member's, if it is of this run alone

	entrance []*os.File // by which the command's process joins its cgroup, while it starts

	terminal *Terminal // of the command, if it has one
	refused  *refusals // by the filter, nil if nobody is told; the run's, for a further command

	stage  program.Kind   // how far the start is: Ready, Waiting or Started
	exited *program.Event // PID 1's last event, if it came during the start
	gone   chan struct{}  // closed when nothing of it lives any more

	guest *guestRun // in place of what the fork server has made

	joins bool // a run that is there, with whose cgroup, for a further command
}

// prepare makes a run that lacks nothing but a command.
func (from recipe) prepare(ctx context.Context, conf *spec.Spec) (_ *clone, err error) {
	r := &clone{recipe: from, spec: conf, gone: make(chan struct{})}
	if r.block, err = r.cell.Take(conf.Namespaces.UID, conf.Namespaces.GID, r.plan.OwnUser); errors.Is(err, cell.ErrLost) {
		return nil, err
	} else if err != nil {
		return nil, &fault.SetupError{Stage: "user namespace", Err: err}
	}
	defer func() {
		if err != nil {
			r.abandon()
		}
	}()
	if conf.Security.Notify {
		if r.refused, err = newRefusals(conf); err != nil {
			return nil, err
		}
	}
	if upper := scratch.UpperOf(&conf.Root); upper != nil {
		if err := upper.BeginRun(); err != nil {
			return nil, &fault.SetupError{Stage: "WithScratchRoot", Err: err, Hint: "a scratch for each, or one run after the other"}
		}
		r.upper = upper
	}
	if err := r.joinNetwork(); err != nil {
		return nil, err
	}
	r.program = r.plan.Run
	if r.inNetwork != nil {
		if r.network = r.cell.TakeNetwork(); r.network != nil {
			r.program = r.inNetwork
		}
	}
	if err := r.spawn(); err != nil {
		return nil, err
	}
	// Make the cgroup that the clone will join while the clone sets itself up.
	if err := r.makeGroup(); err != nil {
		return nil, r.startLost(ctx, &fault.SetupError{Stage: "cgroup", Err: err})
	}
	return r, r.joined(ctx)
}

// joined waits until the command's process is there, with its way into its cgroup.
func (r *clone) joined(ctx context.Context) (err error) {
	if r.plan.Joins > 0 { // while the clone sets itself up
		if r.entrance, err = r.group.Joins(); err != nil {
			return r.startLost(ctx, &fault.SetupError{Stage: "cgroup", Err: err})
		}
		defer func() { closeFiles(r.entrance) }()
	}
	return r.under(ctx, func() error {
		if r.goesAhead() {
			// If it has ended, a later event says why.
			if err := r.letJoin(); err != nil && !hasEnded(err) {
				return r.startLost(ctx, &fault.SetupError{Stage: "cgroup", Err: err})
			}
		}
		return r.follow(ctx, program.Ready)
	})
}

func (r *clone) makeGroup() (err error) {
	in := r.cell.Limits
	if in == nil {
		return nil
	}
	if p := r.spec.Limits.Pool; p.IsLimited() {
		if err := makePool(p, r.cell); err != nil {
			return err
		}
	}
	r.group, err = in.Create(fmt.Sprintf("run-%d", r.engine.runs.Add(1)), r.limits)
	return err
}

// spawn opens what accompanies the run's program and sends both.
func (r *clone) spawn() (err error) {
	defer func() {
		// If the cell is dying, ids are looked up in a process that has ended, and the
		// error does not say why.
		if err != nil && !errors.Is(err, cell.ErrLost) && r.cell.Ending() {
			err = r.cell.Lost()
		}
	}()
	template, err := r.template()
	if err != nil {
		return err
	}
	defer template.Release()
	trees, err := r.open(r.plan.Files)
	defer closeFiles(trees)
	if err != nil {
		return err
	}
	ns, done, err := r.namespace()
	if err != nil {
		return err
	}
	defer done()
	r.conn, err = r.cell.Spawn(r.program, r.block, template, ns, descriptors(trees))
	if err != nil && !errors.Is(err, cell.ErrLost) {
		err = &fault.SetupError{Stage: "clone", Err: err}
	}
	return err
}

func (r *clone) template() (*cell.Template, error) {
	var base *cell.Assembly
	if r.plan.Copies != nil {
		base = copying(r.plan.Copies)
	}
	rest := cell.Assembly{Program: r.plan.Template, Open: func() ([]*os.File, error) { return r.open(r.plan.Trees) }}
	t, err := r.cell.Template(r.sources.template, base, rest)
	if err != nil {
		return nil, setupError(err, r.spec)
	}
	return t, nil
}

func (r *clone) open(trees []compile.Tree) ([]*os.File, error) {
	return openTrees(r.cell, r.engine.Machine(), trees, r.block)
}

// abandonWait is how long a start that failed waits until nothing of the run is left. It only takes
// longer if the fork server does not answer.
const abandonWait = time.Second

// abandon undoes a start that failed, in the background if that takes longer than abandonWait.
func (r *clone) abandon() {
	done := make(chan struct{})
	go func() {
		r.cleanUp()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(abandonWait):
	}
}

// cleanUp ends what there is of a run whose start failed and waits until nothing of it lives.
func (r *clone) cleanUp() {
	if r.conn != nil {
		_ = r.conn.HangUp() // a command that waits to go on then gives up
	}
	// A run ends with PID 1. Its command's process may have gone ahead, and ended before it was
	// looked at, so that its number was another's.
	if r.pidfd != nil && r.joins {
		_ = signal(r.pidfd, unix.SIGKILL)
	}
	for r.conn != nil && r.init == nil {
		m, err := r.conn.Next() // there was no answer yet, or another came first
		if err == nil {
			err = r.adopt(m)
		}
		if err != nil && !errors.Is(err, forkserver.ErrLostFile) {
			break // no process is left that could say more
		}
	}
	if r.init != nil {
		_ = signal(r.init, unix.SIGKILL)
		awaitEnd(r.init)
	}
	if r.terminal != nil {
		r.terminal.Close()
	}
	r.release()
}

// adopt keeps the descriptor that came with an event, if one did: the mount namespace, the
// command's terminal, its filter's listener, or PID 1's pidfd. It refuses anything but a pidfd for
// the latter, as that could be used neither to wait nor to kill.
func (r *clone) adopt(m forkserver.Message) error {
	if m.File == nil {
		return nil
	}
	if m.Kind == program.Ready {
		r.mounts = m.File
		return nil
	}
	if m.Kind == program.Terminal {
		return r.adoptTerminal(m.File)
	}
	if m.Kind == program.Listener {
		return r.adoptListener(m.File)
	}
	if m.Kind != program.Cloned || errors.Is(signal(m.File, 0), unix.EBADF) {
		m.File.Close()
		return fmt.Errorf("a descriptor that is no pidfd came with an event %v", m.Kind)
	}
	r.init = m.File
	return nil
}

// release gives back what the run had. It must be called when nothing of the run lives any more.
func (r *clone) release() {
	close(r.gone)
	if r.conn != nil {
		r.conn.Close()
	}
	for _, f := range []*os.File{r.init, r.pidfd} {
		if f != nil {
			f.Close()
		}
	}
	if r.joins {
		return // the rest is the run's
	}
	r.refused.close()
	if r.member != nil {
		r.member.Retire()
	}
	free := func() {}
	if r.upper != nil {
		free = r.upper.EndRun()
	}
	tidy := func() {
		if r.mounts != nil {
			r.mounts.Close()
		}
		free()
		if r.group != nil {
			_ = r.group.Delete() // what is left, the cell's end deletes
		}
		if r.network != nil {
			r.network.Give()
		}
		if r.guest != nil {
			r.guest.leave()
			return
		}
		r.block.Give()
		r.leaveNetwork()
	}
	// For what a run changes in its root the next run may wait.
	if r.spec.Streams.Lull == 0 || r.upper != nil {
		go tidy()
		return
	}
	time.AfterFunc(tidyDelay, tidy)
}

// tidyDelay lets who waits for the end of a queue's run go on before what is left of it, which
// nobody waits for, takes time.
const tidyDelay = time.Millisecond

// awaitEnd waits until the process has ended, and with it, as PID 1, all of its namespace. The
// descriptor is used through the runtime's poller.
func awaitEnd(pidfd *os.File) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

func signal(pidfd *os.File, s unix.Signal) (err error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	return errors.Join(ctlErr, err)
}

func descriptors(files []*os.File) []int {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return fds
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
