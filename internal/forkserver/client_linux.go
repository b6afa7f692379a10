package forkserver

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Client is the host's end of a fork server's control socket.
type Client struct {
	mu   sync.Mutex // serializes the requests on the stream
	sock *os.File

	// What the greetings tell: the fork server's pid, and a pidfd of the process in it that
	// serves, which ends first.
	pid     int
	serving *os.File
}

// NewClient makes the two ends of a control socket. The second is for the fork server, as its
// descriptor ControlFD; the caller closes it after the start.
func NewClient() (*Client, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	// The greeting brings its sender's pid, as this process sees it: unix(7), SO_PASSCRED.
	err = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	if err = errors.Join(err, unix.SetNonblock(fds[0], true)); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return &Client{sock: os.NewFile(uintptr(fds[0]), "fork server")}, os.NewFile(uintptr(fds[1]), "control"), nil
}

// Hello waits until the fork server is up and returns a pidfd of it.
func (c *Client) Hello(timeout time.Duration) (_ *os.File, err error) {
	if err := c.sock.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	defer c.sock.SetReadDeadline(time.Time{})
	pid, pidfd, err := c.greeting()
	if err == nil {
		// The process that serves does not outlive the fork server, so if it is there now,
		// the pid was nobody else's when it was opened.
		if _, c.serving, err = c.greeting(); err == nil && c.Gone() {
			err = io.EOF
		}
	}
	if err != nil {
		if pidfd != nil {
			pidfd.Close()
		}
		return nil, fmt.Errorf("waiting for the fork server: %w", err)
	}
	c.pid = pid
	return pidfd, nil
}

// greeting receives a byte and returns its sender.
func (c *Client) greeting() (pid int, pidfd *os.File, err error) {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var b [1]byte
	var oob [128]byte
	var n, oobn int
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), b[:], oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return recvErr != unix.EAGAIN && recvErr != unix.EINTR
	})
	if err = cmp.Or(err, recvErr); err != nil {
		return 0, nil, err
	}
	if n == 0 {
		return 0, nil, io.EOF
	}
	if pid = senderPID(oob[:oobn]); pid <= 0 {
		return 0, nil, errors.New("a greeting without credentials")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return 0, nil, io.EOF
	}
	if err != nil {
		return 0, nil, os.NewSyscallError("pidfd_open", err)
	}
	return pid, os.NewFile(uintptr(fd), "pidfd"), nil
}

// Close ends the fork server and with it every run of its cell.
func (c *Client) Close() error {
	if c.serving != nil {
		c.serving.Close()
	}
	return c.sock.Close()
}

// Dup returns another descriptor of the host's end. The fork server goes on until all of them are
// closed.
func (c *Client) Dup() (*os.File, error) { return Dup(c.sock) }

// Dup returns another descriptor of f's open file. If f is closed, before or during the call, the
// error is os.ErrClosed; it never returns another file that was given f's number.
func Dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }) != nil {
		return nil, os.ErrClosed
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("fcntl", dupErr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Gone reports whether the fork server has ended, or serves no more. After its greeting it never
// writes, so anything there is to read is the end. A clone that is still being set up keeps the
// socket open.
func (c *Client) Gone() bool { return readable(c.sock) || c.serving != nil && readable(c.serving) }

// readable reports whether there is something to read, or the end. A pidfd has that when its
// process has ended.
func readable(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return true
	}
	ready := false
	err = raw.Control(func(fd uintptr) {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ready = n > 0
	})
	return ready || err != nil
}

// Ending reports whether the fork server has been killed, or is exiting. It may be there for long
// yet: it needs a CPU for that, and PID 1 waits for the end of all processes of its cell.
func (c *Client) Ending() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
	if err != nil {
		return false // Gone may know
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the third field and on: proc(5)
	if len(f) < 29 {
		return false
	}
	const exiting = 4 // PF_EXITING: linux/sched.h
	flags, _ := strconv.ParseUint(f[9-3], 10, 64)
	pending, _ := strconv.ParseUint(f[31-3], 10, 64)
	return flags&exiting != 0 || pending>>(unix.SIGKILL-1)&1 != 0
}

// Send asks for a clone. The files follow the returned Conn's other end in the program's list of
// descriptors. They stay open and the caller's.
func (c *Client) Send(r *Request, files []int) (*Conn, error) {
	conn, far, err := NewConn()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	if err := c.send(r, append([]int{int(far.Fd())}, files...)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// NewConn makes the two ends of the socket of a process that executes a program. The second is for
// that process, as its Report; the caller closes it.
func NewConn() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	conn := &Conn{sock: os.NewFile(uintptr(fds[0]), "run")}
	if err := prepare(fds); err != nil {
		unix.Close(fds[1])
		conn.Close()
		return nil, nil, err
	}
	return conn, os.NewFile(uintptr(fds[1]), "run's end"), nil
}

// prepare makes the far end blocking, since programs wait on it, and makes the near end learn the
// sender's pid with each message (unix(7), SO_PASSCRED).
func prepare(fds [2]int) error {
	if err := unix.SetNonblock(fds[1], false); err != nil {
		return err
	}
	return unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
}

func (c *Client) send(r *Request, files []int) error {
	head, err := r.marshal()
	if err != nil {
		return err
	}
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	oob := unix.UnixRights(files...)
	parts := [][]byte{head, r.Image}
	for begun := false; len(parts) > 0; begun = true {
		var n int
		var sendErr error
		err := raw.Write(func(fd uintptr) bool {
			n, sendErr = unix.SendmsgBuffers(int(fd), parts, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			return sendErr != unix.EAGAIN && sendErr != unix.EINTR
		})
		if err != nil {
			return os.ErrClosed
		}
		if err = sendErr; err != nil {
			if begun {
				c.sock.Close() // the next request would be taken for the rest of this one
			}
			return fmt.Errorf("request to the fork server: %w", err)
		}
		oob = nil
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if len(parts) > 0 {
			parts[0] = parts[0][n:]
		}
	}
	return nil
}

// Conn is the host's end of the socket of one run or task. It trusts nothing that it receives: the
// process at the other end may have been taken over.
type Conn struct {
	sock *os.File
	seen [program.NumKinds]bool
	oob  [128]byte
	buf  [program.EventSize + 1]byte
}

// ErrLostFile reports that this process had no room for an event's descriptor. Further events may
// follow.
var ErrLostFile = fmt.Errorf("receiving a descriptor: %w", unix.EMFILE)

// Message is an Event and what came with it.
type Message struct {
	program.Event
	PID int // of the sender, as this process sees it
	// The pidfd of a Cloned event, a terminal, a filter's listener, or a task's result.
	File *os.File
}

// Next waits for an event. io.EOF means that nobody holds the other end any more. The caller closes
// the message's File. Each kind of event comes at most once: a sender that repeats one is lying,
// and could go on forever.
func (c *Conn) Next() (Message, error) {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return Message{}, err
	}
	var n, oobn, flags int
	var recvErr error
	receive := func(fd uintptr) bool {
		n, oobn, flags, _, recvErr = unix.Recvmsg(int(fd), c.buf[:], c.oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return recvErr != unix.EAGAIN && recvErr != unix.EINTR
	}
	err = raw.Read(func(fd uintptr) bool {
		// The kernel may report the end one message too early. It looks at the queue first
		// and then whether the peer is gone, so it misses a message that the peer sends in
		// between, just before it exits (net/unix/af_unix.c, unix_dgram_recvmsg). A second
		// look finds the message. The same goes for a peer that exits without having read a
		// message of ours, which is reported as an error first (unix_release_sock).
		if !receive(fd) {
			return false
		}
		seemsOver := recvErr == nil && n+oobn == 0 || recvErr == unix.ECONNRESET
		return !seemsOver || receive(fd)
	})
	if err = errors.Join(err, recvErr); err != nil {
		return Message{}, err
	}
	if n+oobn == 0 { // even an empty message has its sender's credentials
		return Message{}, io.EOF
	}
	m, err := c.parse(c.buf[:n], c.oob[:oobn], flags)
	if err != nil && m.File != nil {
		m.File.Close()
		m.File = nil
	}
	return m, err
}

// parse parses a message. It may return a File together with an error.
func (c *Conn) parse(b, oob []byte, flags int) (m Message, err error) {
	m.File, err = parseFile(oob)
	if err != nil {
		return m, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		return m, errors.New("truncated event")
	}
	m.PID = senderPID(oob)
	if m.Event, err = program.ParseEvent(b); err != nil {
		return m, err
	}
	if c.seen[m.Kind] {
		return m, fmt.Errorf("another event %v", m.Kind)
	}
	c.seen[m.Kind] = true
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		return m, ErrLostFile
	case m.File == nil && brings(m.Kind) && m.Kind != program.Ready:
		return m, fmt.Errorf("no descriptor with an event %v", m.Kind)
	case m.File != nil && !brings(m.Kind):
		return m, fmt.Errorf("a descriptor with an event %v", m.Kind)
	}
	return m, nil
}

// brings reports whether a descriptor may come along with an event.
func brings(k program.Kind) bool {
	return k == program.Cloned || k == program.Ready || k == program.Terminal || k == program.Listener
}

func senderPID(oob []byte) int {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return int(cred.Pid)
		}
	}
	return 0
}

// Go lets the command's process go on after its Ready event, with the descriptors that it waits
// for.
func (c *Conn) Go(files ...int) error { return c.send([]byte{1}, files) }

// handPiece is less than a socket's buffer holds, which is 208 KiB by default (socket(7),
// wmem_default).
const handPiece = 64 << 10

// Hand sends the program that a process goes on with after Go: see program.Builder.Receive. The
// files follow the socket that the process has already. They stay open and the caller's.
func (c *Conn) Hand(image []byte, files []int) error {
	for len(image) > 0 {
		piece := image[:min(len(image), handPiece)]
		if err := c.send(piece, files); err != nil {
			return fmt.Errorf("handing over the command: %w", err)
		}
		image, files = image[len(piece):], nil
	}
	return nil
}

// Send sends one message, and does not wait for the other end to take it: the error is unix.EAGAIN
// if too much is there that it has not taken. The files stay open and the caller's.
func (c *Conn) Send(b []byte, files ...int) error { return c.message(b, files, false) }

// send sends one message, and waits until there is room for it.
func (c *Conn) send(b []byte, files []int) error { return c.message(b, files, true) }

func (c *Conn) message(b []byte, files []int, wait bool) error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return sendErr != unix.EINTR && (sendErr != unix.EAGAIN || !wait)
	})
	return errors.Join(err, sendErr)
}

// Quiet reports whether there is neither an event to receive nor the end of the socket.
func (c *Conn) Quiet() bool { return !readable(c.sock) }

// HangUp makes a command's process that waits for Go give up. Events can still be received.
func (c *Conn) HangUp() error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(ctlErr, err)
}

// Interrupt makes Next and Hand return os.ErrDeadlineExceeded until Continue is called.
func (c *Conn) Interrupt() { _ = c.sock.SetDeadline(time.Unix(1, 0)) }

// Continue undoes Interrupt.
func (c *Conn) Continue() { _ = c.sock.SetDeadline(time.Time{}) }

// Close closes the socket. A command's process that waits for Go then gives up.
func (c *Conn) Close() error { return c.sock.Close() }

// parseFile returns the first descriptor that came along, and closes all others.
func parseFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []int
	for i := range messages {
		if messages[i].Header.Level == unix.SOL_SOCKET && messages[i].Header.Type == unix.SCM_RIGHTS {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return nil, err
			}
			files = append(files, fds...)
		}
	}
	if len(files) == 0 {
		return nil, nil
	}
	for _, fd := range files[1:] {
		unix.Close(fd)
	}
	_ = unix.SetNonblock(files[0], true) // so that a pidfd can be polled
	return os.NewFile(uintptr(files[0]), "received"), nil
}
