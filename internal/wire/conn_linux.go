package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// headSize is that of a message's head: the size of its body in 32 bits, its Kind and the number of files.
const headSize = 6

// Conn is one end. One goroutine may receive, several may send.
type Conn struct {
	sock   *os.File
	limit  int64 // of a message's body
	polled bool  // this end, and files that come in, wait in the runtime's poller

	sending sync.Mutex
	head    [headSize]byte
	oob     []byte
}

// Pair makes a connection. The second end is for the worker.
func Pair(limit int64) (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	_ = unix.SetNonblock(fds[0], true)
	c := NewConn(os.NewFile(uintptr(fds[0]), "calls"), limit)
	c.polled = true
	return c, os.NewFile(uintptr(fds[1]), "worker"), nil
}

// NewConn is the worker's end, given its file. It blocks: one thread waits in the kernel, which is sooner there than through
// the poller.
func NewConn(f *os.File, limit int64) *Conn {
	return &Conn{sock: f, limit: limit, oob: make([]byte, unix.CmsgSpace(4*MaxFiles))}
}

// Send sends a message. Its files stay open.
func (c *Conn) Send(m Message) error {
	if int64(len(m.Body)) > c.limit {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(m.Body), c.limit)
	}
	if len(m.Files) > MaxFiles {
		return fmt.Errorf("%d files, at most %d go with a call", len(m.Files), MaxFiles)
	}
	head := make([]byte, headSize)
	binary.LittleEndian.PutUint32(head, uint32(len(m.Body)))
	head[4], head[5] = byte(m.Kind), byte(len(m.Files))
	parts := [][]byte{head, m.Body}
	var oob []byte
	if len(m.Files) > 0 {
		fds := make([]int, len(m.Files))
		for i, f := range m.Files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	for len(parts[0])+len(parts[1]) > 0 {
		var n int
		err := c.wait(syscall.RawConn.Write, func(fd int) (err error) {
			n, err = unix.SendmsgBuffers(fd, parts, oob, nil, unix.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return err
		}
		k := min(n, len(parts[0]))
		parts[0], parts[1], oob = parts[0][k:], parts[1][n-k:], nil
	}
	return nil
}

// wait does what may have to wait for the other end.
func (c *Conn) wait(until func(syscall.RawConn, func(fd uintptr) bool) error, f func(fd int) error) error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = until(raw, func(fd uintptr) bool {
		for {
			if callErr = f(int(fd)); callErr != unix.EINTR {
				return callErr != unix.EAGAIN
			}
		}
	})
	if err != nil {
		return os.ErrClosed
	}
	return callErr
}

// Receive waits for a message with at most maxFiles files, of one of the kinds wanted. io.EOF means that the other end is gone.
func (c *Conn) Receive(maxFiles int, wanted ...Kind) (m Message, err error) {
	var n, oobn int
	err = c.wait(syscall.RawConn.Read, func(fd int) (err error) {
		n, oobn, _, _, err = unix.Recvmsg(fd, c.head[:], c.oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err == nil {
		m.Files, err = c.files(c.oob[:oobn])
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if err == nil && n == 0 {
		err = io.EOF
	} else if err == nil {
		err = c.readFull(c.head[n:])
	}
	if err != nil {
		return m, err
	}
	size := int64(binary.LittleEndian.Uint32(c.head[:]))
	m.Kind = Kind(c.head[4])
	for _, k := range wanted {
		if m.Kind != k {
			continue
		}
		switch {
		case size > c.limit:
			return m, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, size, c.limit)
		case len(m.Files) != int(c.head[5]):
			return m, fmt.Errorf("%d files came with a message that has %d", len(m.Files), c.head[5])
		case len(m.Files) > maxFiles:
			return m, fmt.Errorf("%d files came with a message that may have %d", len(m.Files), maxFiles)
		}
		m.Body, err = c.body(size)
		return m, err
	}
	return m, fmt.Errorf("unexpected message %v", m.Kind)
}

// readFull reads what has to follow.
func (c *Conn) readFull(b []byte) error {
	_, err := io.ReadFull(c.sock, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// body reads the rest of a message. What is large takes memory as it arrives, not as it is announced.
func (c *Conn) body(size int64) ([]byte, error) {
	const small = 1 << 20
	if size <= small {
		b := make([]byte, size)
		return b, c.readFull(b)
	}
	var b bytes.Buffer
	if n, err := b.ReadFrom(io.LimitReader(c.sock, size)); err != nil {
		return nil, err
	} else if n < size {
		return nil, io.ErrUnexpectedEOF
	}
	return b.Bytes(), nil
}

// files makes files of the descriptors in control data.
func (c *Conn) files(oob []byte) (list []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials and the like
		}
		for _, fd := range fds {
			if c.polled {
				_ = unix.SetNonblock(fd, true)
			}
			list = append(list, os.NewFile(uintptr(fd), "received"))
		}
	}
	return list, nil
}

// Quiet tells whether there is nothing to receive, nor the end of the connection.
func (c *Conn) Quiet() bool {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = err == unix.EAGAIN
	})
	return err == nil && quiet
}

// Close closes this end; who waits for a message gets an error.
func (c *Conn) Close() error { return c.sock.Close() }
