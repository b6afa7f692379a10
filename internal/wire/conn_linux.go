package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// headSize is the size of a message's head: the size of its body in 32 bits, its Kind and the
// number of files.
const headSize = 6

// Conn is one end. One goroutine may receive, several may send.
type Conn struct {
	sock  *os.File
	limit int64 // of a message's body
	host  bool  // the host's end: waits in the runtime's poller, trusts nothing

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
	c.host = true
	return c, os.NewFile(uintptr(fds[1]), "worker"), nil
}

// NewConn makes the worker's end from its file. It blocks: a thread that waits in the kernel wakes
// up sooner than through the poller.
func NewConn(f *os.File, limit int64) *Conn {
	return &Conn{sock: f, limit: limit, oob: make([]byte, unix.CmsgSpace(4*maxRights))}
}

// maxRights is the most descriptors that the kernel lets a message have: SCM_MAX_FD. It closes
// those for which there is no room at once, in the thread that receives.
const maxRights = 253

// limitOf returns how large the body of a message may be.
func (c *Conn) limitOf(k Kind) int64 {
	if k == Failure || k == Panicked || k == Streamed {
		return maxTrouble
	}
	return c.limit
}

// Send sends a message. Its files stay open.
func (c *Conn) Send(m Message) error {
	if limit := c.limitOf(m.Kind); int64(len(m.Body)) > limit {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(m.Body), limit)
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

// wait calls f until its error is not EAGAIN, and waits for the other end between the calls.
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

// Receive waits for a message of one of the wanted kinds with at most maxFiles files. io.EOF means
// that the other end is gone.
func (c *Conn) Receive(maxFiles int, wanted ...Kind) (m Message, err error) {
	n := 0
	n, m.Files, err = c.read(c.head[:])
	defer func() {
		if err != nil {
			m.Discard()
		}
	}()
	if err == nil {
		err = c.readFull(c.head[n:])
	}
	if err != nil {
		return m, err
	}
	size := int64(binary.LittleEndian.Uint32(c.head[:]))
	m.Kind = Kind(c.head[4])
	if !slices.Contains(wanted, m.Kind) {
		return m, fmt.Errorf("unexpected message %v", m.Kind)
	}
	limit := c.limitOf(m.Kind)
	switch {
	case size > limit:
		return m, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, size, limit)
	case len(m.Files) != int(c.head[5]):
		return m, fmt.Errorf("%d files came with a message that has %d", len(m.Files), c.head[5])
	case len(m.Files) > maxFiles:
		return m, fmt.Errorf("%d files came with a message that may have %d", len(m.Files), maxFiles)
	}
	m.Body, err = c.body(size)
	return m, err
}

// read reads what there is, and the files that came with it.
func (c *Conn) read(b []byte) (n int, files []*os.File, err error) {
	var oobn int
	err = c.wait(syscall.RawConn.Read, func(fd int) (err error) {
		n, oobn, _, _, err = unix.Recvmsg(fd, b, c.oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err == nil {
		files, err = received(c.oob[:oobn])
	}
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return max(n, 0), files, err
}

// rest reads a message after its head, where no files may come.
type rest struct{ *Conn }

func (r rest) Read(b []byte) (int, error) {
	n, files, err := r.read(b)
	if len(files) > 0 {
		(&Message{Files: files}).Discard()
		return 0, fmt.Errorf("%d files came in the middle of a message", len(files))
	}
	return n, err
}

// readFull fills b.
func (c *Conn) readFull(b []byte) error {
	_, err := io.ReadFull(rest{c}, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// body reads the rest of a message. It takes memory for a large body as that arrives, not as it is
// announced.
func (c *Conn) body(size int64) ([]byte, error) {
	const small = 1 << 20
	if size <= small {
		b := make([]byte, size)
		return b, c.readFull(b)
	}
	var b bytes.Buffer
	if n, err := b.ReadFrom(io.LimitReader(rest{c}, size)); err != nil {
		return nil, err
	} else if n < size {
		return nil, io.ErrUnexpectedEOF
	}
	return b.Bytes(), nil
}

// received makes files of the descriptors in control data. It does not change whether they block:
// the other end has the same open files and could change that again.
func received(oob []byte) (list []*os.File, err error) {
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
			list = append(list, os.NewFile(uintptr(fd), "received"))
		}
	}
	return list, nil
}

// Quiet reports whether there is neither a message to receive nor the end of the connection.
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

// HangUp ends the connection. Messages that were already sent can still be received. The other end
// of a worker that has ended may live on in another run, or in a message that nobody receives.
func (c *Conn) HangUp() {
	if raw, err := c.sock.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

// Close closes this end. Calls that wait for a message return an error.
func (c *Conn) Close() error {
	if c.host {
		c.HangUp()
		c.drain()
	}
	return c.sock.Close()
}

// drain receives the messages that nobody wants. Otherwise the kernel would close their files
// together with the socket, however long that takes.
func (c *Conn) drain() {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return
	}
	b, oob := make([]byte, 64<<10), make([]byte, len(c.oob))
	for more := true; more; {
		more = false
		err = raw.Control(func(fd uintptr) {
			n, oobn, _, _, err := unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if more = err == unix.EINTR || err == nil && n > 0; err == nil {
				files, _ := received(oob[:oobn])
				(&Message{Files: files}).Discard()
			}
		})
		more = more && err == nil
	}
}

// discard closes a file that came from the other end, without waiting. Closing a TCP socket waits
// as long as SO_LINGER says if the sent data is not acknowledged: tcp(7), socket(7).
func discard(f *os.File) {
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeSocket == 0 {
		f.Close()
		return
	}
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) })
	}
	go f.Close() // another holder of the socket may set SO_LINGER again
}

// checkFile reports why the caller can't have a file that came from a worker, or nil. Reading a
// pipe, a socket, a terminal and the like waits for another process. O_NONBLOCK, which would keep
// that wait in the poller where Close ends it, can be changed by everybody who has the same open
// file: fcntl(2).
func checkFile(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	ctlErr := raw.Control(func(fd uintptr) {
		if err = unix.Fstat(int(fd), &st); err == nil {
			err = unix.Fstatfs(int(fd), &fs)
		}
	})
	if ctlErr != nil || err != nil {
		return errors.Join(ctlErr, err)
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFCHR && isMemoryDevice(uint64(st.Rdev)):
		return nil
	case kind == unix.S_IFREG && !madeUp[int64(fs.Type)], kind == unix.S_IFDIR && !madeUp[int64(fs.Type)]:
		return nil
	}
	return errors.New("a file of this kind may keep its reader waiting for ever: return a regular file, or an io.Reader for a stream")
}

// madeUp are file systems whose files look regular but are not: reading one in /proc, for example,
// waits for locks of the process that it describes.
var madeUp = map[int64]bool{unix.PROC_SUPER_MAGIC: true, unix.ANON_INODE_FS_MAGIC: true, unix.NSFS_MAGIC: true, unix.PID_FS_MAGIC: true}

// isMemoryDevice reports whether a device is null, zero, full, random or urandom:
// Documentation/admin-guide/devices.txt.
func isMemoryDevice(rdev uint64) bool {
	minor := unix.Minor(rdev)
	return unix.Major(rdev) == 1 && (minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9)
}
