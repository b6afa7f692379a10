package cell

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// InNetwork makes calls in a network namespace of the cell, or in a new one if ns is nil, and
// returns the descriptors that build names, at most program.MaxFiles. A socket belongs to the
// namespace in which it was made, whoever uses it later: so this process can listen, connect and
// speak rtnetlink(7) in one that it may not enter.
func (c *Cell) InNetwork(ns *os.File, build func(b *program.Builder) []program.Slot) ([]*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	b := program.NewBuilder()
	back, files := b.File("socket for what is made"), []int{pair[1]}
	b.Stage("network namespace")
	flag := program.Int(unix.CLONE_NEWNET, "CLONE_NEWNET")
	if ns != nil {
		in := b.File("network namespace")
		files = append(files, int(ns.Fd()))
		b.Call("setns", unix.SYS_SETNS, program.Use(in), flag)
	} else {
		b.Call("unshare", unix.SYS_UNSHARE, flag)
	}
	made := build(b)
	b.SendFiles(back, made...)
	p, err := b.Program()
	if err != nil {
		return nil, err
	}
	if file, err := c.Task(p, files); err != nil {
		return nil, err
	} else if file != nil {
		file.Close()
	}
	return receiveFiles(pair[0], len(made))
}

// receiveFiles takes the descriptors of a message that is there.
func receiveFiles(socket, want int) ([]*os.File, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4*want))
	_, n, _, _, err := unix.Recvmsg(socket, b[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	var files []*os.File
	for i := range messages {
		fds, rightsErr := unix.ParseUnixRights(&messages[i])
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			// So that the runtime polls it.
			err = errors.Join(err, unix.SetNonblock(fd, true))
			files = append(files, os.NewFile(uintptr(fd), "of a network namespace"))
		}
	}
	if err == nil && len(files) != want {
		err = fmt.Errorf("%d of %d descriptors arrived: raise the limit of open files (ulimit -n)", len(files), want)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	return files, nil
}
