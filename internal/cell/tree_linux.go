package cell

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// Tree describes a host directory or file, with what is mounted below it, or a scratch.
type Tree struct {
	Path     string
	Scratch  *Scratch // instead of Path
	Writable bool
	// Partial leaves out what is mounted below, where Open would otherwise fail before Linux
	// 5.12.
	Partial bool
	// Owner, if not nil, makes files of the source's own owner belong to the block's user, in
	// both directions.
	Owner *Block
	// AllIDs makes files of every owner from 0 to 65535 belong to that same id in Owner's
	// block.
	AllIDs bool
}

// ErrNoIDMap reports that a file system can't be mounted with mapped owners.
var ErrNoIDMap = errors.New("its file system does not support idmapped mounts")

// Open returns the tree as a descriptor of a detached mount, which a program attaches with
// move_mount. Set-uid bits and device nodes have no effect in it.
func (c *Cell) Open(t Tree) (*os.File, error) {
	var f *os.File
	var err error
	switch {
	case t.Scratch != nil && t.Scratch.porter != nil:
		return t.Scratch.open(t)
	case t.Scratch != nil:
		f, err = t.Scratch.open(t)
	case !hasSetAttr():
		return c.openOld(t)
	case c.ids.rootless:
		return c.openByPorter(t)
	default:
		f, err = cloneTree(t.Path)
	}
	if err != nil {
		return nil, err
	}
	fd, attr := int(f.Fd()), t.attr()
	if t.Owner != nil {
		err = c.mapOwners(fd, t, &attr)
	}
	if err == nil {
		err = setAttr(fd, &attr)
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "mount_setattr", Path: t.Path, Err: err}
	}
	return f, nil
}

func cloneTree(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (t Tree) attr() unix.MountAttr {
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if !t.Writable {
		a.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	return a
}

// mapOwners adds the mapping of the source's owner, or of all owners.
func (c *Cell) mapOwners(fd int, t Tree, attr *unix.MountAttr) error {
	o := owners{all: true}
	if !t.AllIDs {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
		o = owners{uid: st.Uid, gid: st.Gid, user: t.Owner.uid, group: t.Owner.gid}
	}
	userns, err := c.idmap(t.Owner, o)
	if err != nil {
		return err
	}
	attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
	attr.Userns_fd = uint64(userns.Fd())
	err = setAttr(fd, attr)
	attr.Attr_set &^= unix.MOUNT_ATTR_IDMAP
	if err == unix.EINVAL || err == unix.EPERM {
		return ErrNoIDMap
	}
	return err
}

func setAttr(fd int, attr *unix.MountAttr) error {
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr)
}

// porter opens host directories for a rootless process, which may not clone mounts itself. It is a
// separate fork server in a user and mount namespace in which all of the host's mounts are visible
// but the cell is not.
type porter struct {
	client *forkserver.Client
	cmd    *exec.Cmd
}

// openByPorter tries once more if the porter died meanwhile.
func (c *Cell) openByPorter(t Tree) (*os.File, error) {
	for again := false; ; again = true {
		p, err := c.livePorter()
		if err != nil {
			return nil, err
		}
		if f, err := p.open(t); err == nil || again || !p.client.Gone() {
			return f, err
		}
	}
}

// livePorter returns the cell's porter. It replaces one that has died.
func (c *Cell) livePorter() (*porter, error) {
	c.porting.Lock()
	defer c.porting.Unlock()
	if c.porter != nil && !c.porter.client.Gone() {
		return c.porter, nil
	}
	if c.porter != nil {
		c.porter.close()
	}
	var err error
	c.porter, err = startPorter()
	return c.porter, err
}

func startPorter() (*porter, error) {
	p, err := startOutside(&syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	})
	if err != nil {
		return nil, fmt.Errorf("starting a process that opens host directories: %w", err)
	}
	pidfd, err := p.client.Hello(bootTimeout)
	if err != nil {
		p.close()
		return nil, err
	}
	pidfd.Close() // it is a child
	return p, nil
}

// startKeeper starts a process that only waits until it is released or this process ends: a fork
// server that never gets a request.
func startKeeper() (pid int, release func(), err error) {
	p, err := startOutside(&syscall.SysProcAttr{})
	if err != nil {
		return 0, nil, err
	}
	return p.cmd.Process.Pid, sync.OnceFunc(p.close), nil
}

// startOutside starts a fork server that is not in the cell.
func startOutside(attr *syscall.SysProcAttr) (*porter, error) {
	client, control, err := forkserver.NewClient()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	exe, err := os.Open(ownPath)
	if err != nil {
		client.Close()
		return nil, err
	}
	defer exe.Close()
	cmd := exec.Command(ownPath, forkserver.Name)
	cmd.Env = []string{forkserver.Env}
	cmd.ExtraFiles = []*os.File{control, exe}
	attr.Setsid = true
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		client.Close()
		return nil, err
	}
	return &porter{client: client, cmd: cmd}, nil
}

func (p *porter) close() {
	p.client.Close()
	_ = p.cmd.Wait() // it exits with 0 or was killed; it has ended either way
}

// open makes a task clone the tree and send it with an event.
func (p *porter) open(t Tree) (*os.File, error) {
	path, err := filepath.Abs(t.Path)
	if err != nil {
		return nil, err
	}
	b := program.NewBuilder()
	if hasSetAttr() {
		fd := b.CallTo("open_tree", unix.SYS_OPEN_TREE, program.AtCWD, b.Str(path),
			program.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE"))
		b.SetAttr(fd, t.attr().Attr_set, true)
		b.SendFile(fd)
	} else if err := t.addOldOpen(b, path); err != nil {
		return nil, err
	}
	f, err := p.fetch(b)
	var call *CallError
	if errors.As(err, &call) {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: call.Errno}
	}
	return f, err
}

// fetch makes a task send a descriptor.
func (p *porter) fetch(b *program.Builder, files ...int) (*os.File, error) {
	prog, err := b.Program()
	if err != nil {
		return nil, err
	}
	f, err := task(p.client, prog, files)
	if err == nil && f == nil {
		err = errors.New("no descriptor came back")
	}
	return f, err
}
