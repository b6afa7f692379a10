package named

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxMessage = 4 << 20 // more than the arguments and the environment of a command may be
	maxFiles   = 3       // of a message
)

// Conn carries messages: 32 bits with the size, and a value as JSON. Open files come with the
// first. One goroutine may receive, another one send.
type Conn struct{ socket *net.UnixConn }

// Send sends a value, and files, which stay open.
func (c *Conn) Send(v any, files ...syscall.Conn) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("a message of %d bytes is larger than %d", len(body), maxMessage)
	}
	fds, err := dup(files)
	defer closeAll(fds)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.socket.WriteMsgUnix(binary.BigEndian.AppendUint32(nil, uint32(len(body))), rights, nil); err != nil {
		return err
	}
	_, err = c.socket.Write(body)
	return err
}

// dup copies descriptors, so that nobody closes them meanwhile.
func dup(files []syscall.Conn) (fds []int, err error) {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return fds, err
		}
		var fd int
		ctlErr := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
		if err = errors.Join(ctlErr, err); err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Receive waits for a message and returns the files that came with it. io.EOF means that the other
// end is gone.
func (c *Conn) Receive(v any) (files []*os.File, err error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles)) // what has no room is closed: recvmsg(2)
	n, oobn, flags, _, err := c.socket.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	fds, err := received(oob[:oobn])
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	if err == nil && (flags&unix.MSG_CTRUNC != 0 || len(fds) > maxFiles) {
		err = errors.New("too many files came with a message")
	}
	if err == nil {
		_, err = io.ReadFull(c.socket, head[n:])
	}
	if err == nil {
		err = c.body(int64(binary.BigEndian.Uint32(head[:])), v)
	}
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return files, nil
}

// body reads the rest of a message. It takes memory as that arrives, not as it is announced.
func (c *Conn) body(size int64, v any) error {
	if size > maxMessage {
		return fmt.Errorf("a message of %d bytes is larger than %d", size, maxMessage)
	}
	b, err := io.ReadAll(io.LimitReader(c.socket, size))
	if err == nil && int64(len(b)) < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// received returns the descriptors in control data.
func received(oob []byte) (all []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all, err
}

// SetReadDeadline makes Receive fail at a time; the zero time is none.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.socket.SetReadDeadline(t) }

// SetWriteDeadline makes Send fail at a time.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.socket.SetWriteDeadline(t) }

// Close ends the connection.
func (c *Conn) Close() error { return c.socket.Close() }
