//go:build linux

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/wall"
)

// It takes the argument and the environment, because a user's program may have an argument of any
// name.
func init() {
	if len(os.Args) == 2 && os.Args[1] == Name && os.Getenv("_SANDBOX_RECEIVER") == "1" && !forkserver.Privileged() {
		if err := receive(filepath.Join(Dir, socketName)); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox: receiver:", err)
			unix.Exit(1)
		}
		unix.Exit(0)
	}
}

// receive starts PID 1 of the cell and waits for its end.
func receive(socket string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer conn.Close()
	cmd, err := start(conn)
	answer := started
	if err != nil {
		answer = err.Error()
	}
	_, answerErr := conn.Write([]byte(answer[:min(len(answer), mostAnswer)]))
	if err = errors.Join(err, answerErr); err != nil {
		return err // and the kernel ends PID 1
	}
	conn.Close()
	return cmd.Wait()
}

func start(conn *net.UnixConn) (*exec.Cmd, error) {
	o, files, err := read(conn)
	if err != nil {
		return nil, fmt.Errorf("asking what to start: %w", err)
	}
	// Of a thread, which PID 1 has it from.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if nice, err := niceness(); err != nil || nice < o.Nice {
		if err := errors.Join(err, unix.Setpriority(unix.PRIO_PROCESS, 0, o.Nice)); err != nil {
			return nil, fmt.Errorf("lowering its priority: %w", err)
		}
	}
	cmd := command(o, files)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for _, f := range files {
		f.Close() // PID 1 alone has them: the end of its own is the end of the cell
	}
	if err := becomeNobody(); err != nil {
		return nil, fmt.Errorf("giving up its rights: %w", err)
	}
	return cmd, nil
}

// mostOrder is far more than any order has.
const mostOrder = 1 << 16

// mostFiles is more than any order comes with.
const mostFiles = 16

func read(conn *net.UnixConn) (o order, files []*os.File, err error) {
	message, oob := make([]byte, mostOrder), make([]byte, unix.CmsgSpace(4*mostFiles))
	n, oobn, flags, _, err := conn.ReadMsgUnix(message, oob)
	switch {
	case err != nil:
		return o, nil, err
	case n == 0:
		return o, nil, io.ErrUnexpectedEOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return o, nil, errors.New("the message is too large")
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return o, nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return o, nil, err
		}
		for _, fd := range fds { // close-on-exec, as ReadMsgUnix asks for
			files = append(files, os.NewFile(uintptr(fd), "of PID 1"))
		}
	}
	if err = json.Unmarshal(message[:n], &o); err == nil && (len(files) < 2 || len(o.Args) == 0) {
		err = errors.New("the message lacks something")
	}
	return o, files, err
}

// command is PID 1, in namespaces of its own within the container's. In its user namespace it has
// all capabilities, and outside none: nothing of the container's own rights is left to it.
func command(o order, files []*os.File) *exec.Cmd {
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if !o.HostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	return &exec.Cmd{
		Path: o.Args[0], Args: o.Args, Env: o.Env, Dir: "/",
		Stdout: files[0], Stderr: files[0], ExtraFiles: files[1:],
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: flags, Setsid: true,
			UidMappings: mapping(o.UIDs), GidMappings: mapping(o.GIDs), GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{},
		},
	}
}

func mapping(extents []wall.Extent) (list []syscall.SysProcIDMap) {
	for _, e := range extents {
		list = append(list, syscall.SysProcIDMap{ContainerID: int(e.Inside), HostID: int(e.Outside), Size: int(e.Size)})
	}
	return list
}

// becomeNobody gives up the rights that starting PID 1 took. Without capabilities there is nothing
// left but to wait. A process of the host that is nobody too can do no more than end the cell.
func becomeNobody() error {
	const nobody = 65534
	return errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody))
}
