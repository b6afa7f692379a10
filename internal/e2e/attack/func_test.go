//go:build linux

package attack

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/wire"
)

// The order to a function to take over its process, and what it seems to answer.
type (
	order struct {
		Do   string
		File *os.File
	}
	loot struct {
		R, S io.Reader
		F, G *os.File
		T    []tile
		V    any
	}
	tile struct{ Px [64 << 10]byte }
)

var taken = function.New("taken", func(_ context.Context, in order) (loot, error) {
	f := takeovers[in.Do]
	if f == nil {
		return loot{}, fmt.Errorf("no takeover %q", in.Do)
	}
	if err := f(in); err != nil {
		return loot{}, err
	}
	select {}
})

// takeovers do what a hostile function does. Its process then sleeps forever.
var takeovers = map[string]func(order) error{
	"a pipe of its own": func(order) error {
		var p [2]int
		if err := unix.Pipe2(p[:], 0); err != nil {
			return err
		}
		forge(wire.Answer, answerOf(0), p[0])
		for {
			_ = unix.SetNonblock(p[0], false)
		}
	},
	"silence": func(order) error {
		forge(wire.Answer, answerOf(0))
		for _, fd := range pipesToCome(1) {
			go func() {
				for {
					_ = unix.SetNonblock(fd, false)
				}
			}()
		}
		return nil
	},
	"no last word": func(order) error {
		forge(wire.Answer, answerOf(0))
		return unix.Close(pipesToCome(1)[0])
	},
	"exit": func(order) error {
		forge(wire.Answer, answerOf(0))
		_, _ = unix.Write(pipesToCome(1)[0], []byte("part"))
		os.Exit(0)
		return nil
	},
	"ends handed on": func(in order) error {
		forge(wire.Answer, answerOf(0))
		return leave(in.File, append(pipesToCome(1), connection())...)
	},
	"connection handed on": func(in order) error { return leave(in.File, connection()) },
	"one stream twice":     func(order) error { forge(wire.Answer, answerOf(0, 0)); return nil },
	"streams out of order": func(order) error { forge(wire.Answer, answerOf(1, 0)); return nil },
	"a stream and a file":  func(order) error { forge(wire.Answer, answerOf(0), 0); return nil },
	"files in the body": func(order) error {
		fd := connection()
		body := answerOf()
		_, _ = unix.Write(fd, append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), byte(wire.Answer), 0))
		_ = unix.Sendmsg(fd, body, unix.UnixRights(0, 1, 2), nil, 0)
		return nil
	},
	"sockets that linger": func(order) error {
		a, b, err := lingering()
		if err != nil {
			return err
		}
		forge(wire.Answer, answerOf(2, 3), a, b)
		_, _ = unix.Close(a), unix.Close(b)
		return nil
	},
	"sockets that linger, unread": func(order) error {
		a, b, err := lingering()
		if err != nil {
			return err
		}
		forge(wire.Kind(99), nil)
		_ = unix.Sendmsg(connection(), []byte("x"), unix.UnixRights(a, b), nil, 0)
		_, _ = unix.Close(a), unix.Close(b)
		return nil
	},
	"large elements": func(order) error {
		body := append(answerHead(), 0xa1, 0x61, 'T', 0x99, 0x40, 0)
		forge(wire.Answer, append(body, []byte(strings.Repeat("\xa1\x62Px\x41\x01", 0x4000))...))
		return nil
	},
	"maps of nothing": func(order) error {
		list := "\x9a\x00\x02\x00\x00" + strings.Repeat("\xa0", 1<<17)
		body := append(answerHead(), 0xa1, 0x61, 'V', 0x98, 127)
		forge(wire.Answer, append(body, []byte(strings.Repeat(list, 127))...))
		return nil
	},
}

// connection returns the descriptor of the connection between a function's process and the host.
func connection() int {
	for fd := 3; fd < 64; fd++ {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if peer, ok := peerOf(fd); err == nil && domain == unix.AF_UNIX && ok && peer == 0 {
			return fd
		}
	}
	panic("no connection")
}

// peerOf returns the pid of the process at the other end of a socket. The host's pid is not in this
// namespace.
func peerOf(fd int) (int32, bool) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, false
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return cred.Pid, err == nil && kind == unix.SOCK_STREAM
}

// forge sends a message in place of the code that serves functions.
func forge(kind wire.Kind, body []byte, files ...int) {
	head := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), byte(kind), byte(len(files)))
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	fd := connection()
	if err := unix.Sendmsg(fd, head, oob, nil, 0); err != nil {
		panic(err)
	}
	for len(body) > 0 {
		n, err := unix.Write(fd, body)
		if err != nil {
			return // the host has closed the connection
		}
		body = body[n:]
	}
}

func answerHead(fields ...int) []byte {
	b, err := wire.Marshal(wire.Envelope{Fields: fields})
	if err != nil {
		panic(err)
	}
	return b
}

// answerOf returns the body of an answer that has only streams and files, for these fields.
func answerOf(fields ...int) []byte { return append(answerHead(fields...), 0xa0) }

// pipesToCome waits for the n pipes that the host sends.
func pipesToCome(n int) (fds []int) {
	for len(fds) < n {
		fds = nil
		for fd := 3; fd < 64; fd++ {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
				fds = append(fds, fd)
			}
		}
		time.Sleep(time.Millisecond)
	}
	return fds
}

// leave sends descriptors to a socket of the caller's that nobody reads, and exits.
func leave(socket *os.File, fds ...int) error {
	if err := unix.Sendmsg(int(socket.Fd()), []byte("x"), unix.UnixRights(fds...), nil, 0); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// lingering returns the ends of a TCP connection on which nothing that was sent is received.
// Whoever closes the first end waits.
func lingering() (a, b int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, 0, err
	}
	at := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 4242}
	_ = unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	if err := unix.Bind(l, at); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(l, 1); err != nil {
		return 0, 0, err
	}
	if a, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(a, at); err != nil {
		return 0, 0, err
	}
	if b, _, err = unix.Accept(l); err != nil {
		return 0, 0, err
	}
	_ = unix.SetNonblock(a, true)
	for junk := make([]byte, 1<<16); err == nil; {
		_, err = unix.Write(a, junk)
	}
	_ = unix.Close(l)
	return a, b, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 10_000})
}

// inTime fails the test if f does not return.
func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(testkit.Patience):
		t.Fatal(what + " does not return")
	}
}

// TestAttackFuncAnswers has functions send answers that could make the host wait, or use much
// memory. Each call ends by itself, in time.
func TestAttackFuncAnswers(t *testing.T) {
	t.Parallel()
	for do, want := range map[string]string{
		"a pipe of its own":           "may keep its reader waiting for ever",
		"one stream twice":            "a file for a field that takes none",
		"streams out of order":        "a file for a field that takes none",
		"a stream and a file":         "files for no field",
		"files in the body":           "3 files came in the middle of a message",
		"sockets that linger":         "may keep its reader waiting for ever",
		"sockets that linger, unread": "unexpected message",
		"large elements":              "raise function.MessageLimit",
		"maps of nothing":             "raise function.MessageLimit",
	} {
		t.Run(do, func(t *testing.T) {
			t.Parallel()
			workers := taken.Workers(1)
			defer workers.Close()
			inTime(t, "Call", func() {
				_, err := workers.Call(testkit.Deadline(t), order{Do: do})
				require.ErrorContains(t, err, want)
				if strings.Contains(want, "MessageLimit") {
					require.ErrorIs(t, err, function.ErrMessageLimit)
				}
			})
		})
	}
}

// TestAttackFuncStreams has functions answer with a stream that does not end. Read, Close, the
// context and the timeout end it.
func TestAttackFuncStreams(t *testing.T) {
	t.Parallel()
	for _, do := range []string{"silence", "no last word", "exit", "ends handed on"} {
		for _, end := range []string{"close", "cancel", "timeout"} {
			t.Run(do+", "+end, func(t *testing.T) {
				t.Parallel()
				socket := socketPair(t, unix.SOCK_STREAM)
				var opts []function.Option
				if end == "timeout" {
					opts = append(opts, sandbox.WithTimeout(time.Second))
				}
				workers := taken.With(opts...).Workers(1)
				defer func() { inTime(t, "closing the workers", workers.Close) }()
				ctx, cancel := context.WithCancel(testkit.Deadline(t))
				defer cancel()
				out, err := workers.Call(ctx, order{Do: do, File: socket[0]})
				if end == "timeout" && err != nil { // on a slow machine
					return
				}
				require.NoError(t, err)
				require.Nil(t, out.S)
				read := make(chan error, 1)
				go func() {
					_, err := io.ReadAll(out.R)
					read <- err
				}()
				time.Sleep(50 * time.Millisecond)
				switch end {
				case "close":
					inTime(t, "Close", func() { _ = out.R.(io.Closer).Close() })
				case "cancel":
					cancel()
				}
				inTime(t, "Read", func() { err = <-read })
				require.Error(t, err)
				if end == "cancel" && do != "exit" && do != "ends handed on" { // these had ended before
					require.ErrorIs(t, err, context.Canceled)
				}
			})
		}
	}
}

// TestAttackFuncHandedOn has a function's process end while another process has its end of the
// connection.
func TestAttackFuncHandedOn(t *testing.T) {
	t.Parallel()
	socket := socketPair(t, unix.SOCK_STREAM)
	inTime(t, "Call", func() {
		_, err := taken.Call(testkit.Deadline(t), order{Do: "connection handed on", File: socket[0]})
		require.ErrorIs(t, err, function.ErrNoAnswer)
	})
}

// returnable are files that a function may try to return, and whether the caller gets them.
var returnable = map[string]struct {
	open func() (int, error)
	ok   bool
}{
	"a regular file": {func() (int, error) { return unix.Open("/tmp/x", unix.O_RDWR|unix.O_CREAT, 0o600) }, true},
	"a directory":    {func() (int, error) { return unix.Open("/tmp", unix.O_DIRECTORY, 0) }, true},
	"sealed memory": {func() (int, error) {
		fd, err := unix.MemfdCreate("x", unix.MFD_ALLOW_SEALING)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
		}
		return fd, err
	}, true},
	"null":         {func() (int, error) { return unix.Open("/dev/null", unix.O_RDWR, 0) }, true},
	"only a place": {func() (int, error) { return unix.Open("/tmp", unix.O_PATH, 0) }, true},
	"a pipe": {func() (int, error) {
		var p [2]int
		err := unix.Pipe2(p[:], unix.O_NONBLOCK)
		return p[0], err
	}, false},
	"a named pipe": {func() (int, error) {
		_ = unix.Mkfifo("/tmp/fifo", 0o600)
		return unix.Open("/tmp/fifo", unix.O_RDWR, 0)
	}, false},
	"a socket":         {func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0) }, false},
	"a terminal":       {func() (int, error) { return unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0) }, false},
	"epoll":            {func() (int, error) { return unix.EpollCreate1(0) }, false},
	"an event counter": {func() (int, error) { return unix.Eventfd(0, 0) }, false},
	"a timer":          {func() (int, error) { return unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0) }, false},
	"a process":        {func() (int, error) { return unix.PidfdOpen(os.Getpid(), 0) }, false},
	"a file of /proc":  {func() (int, error) { return unix.Open("/proc/self/maps", unix.O_RDONLY, 0) }, false},
	"a dir of /proc":   {func() (int, error) { return unix.Open("/proc/self", unix.O_RDONLY, 0) }, false},
}

var hands = function.New("hands", func(_ context.Context, what string) (loot, error) {
	fd, err := returnable[what].open()
	if err != nil {
		return loot{}, fmt.Errorf("%s: %w", what, err)
	}
	return loot{F: os.NewFile(uintptr(fd), what)}, nil
})

// TestAttackFuncDescriptors has a function return descriptors of all kinds.
func TestAttackFuncDescriptors(t *testing.T) {
	t.Parallel()
	workers := hands.Workers(1)
	defer workers.Close()
	for what, kind := range returnable {
		out, err := workers.Call(testkit.Deadline(t), what)
		if !kind.ok {
			require.Error(t, err, what)
			require.True(t, strings.Contains(err.Error(), "may keep its reader waiting") || strings.Contains(err.Error(), what+": "), "%s: %v", what, err)
			continue
		}
		require.NoError(t, err, what)
		inTime(t, what, func() {
			_, _ = out.F.Read(make([]byte, 1))
			require.NoError(t, out.F.Close())
		})
	}
}

var heedless = function.New("heedless", func(context.Context, struct{ Body io.Reader }) (string, error) { return "ignored", nil })

// TestAttackFuncArguments has functions that do not read their streams, or keep them. Callers, and
// the next calls, do not notice.
func TestAttackFuncArguments(t *testing.T) {
	t.Parallel()
	workers := heedless.With(sandbox.WithTimeout(testkit.Patience)).Workers(1)
	defer workers.Close()
	for _, body := range []io.Reader{endless{}, strings.NewReader(strings.Repeat("x", sandbox.MiB)), testkit.NewStuck(t)} {
		inTime(t, "Call", func() {
			out, err := workers.Call(testkit.Deadline(t), struct{ Body io.Reader }{body})
			require.NoError(t, err)
			require.Equal(t, "ignored", out)
		})
	}
}
