//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() {
	testkit.AddHelper("asks", asks)
	testkit.AddHelper("answers", answersHelper)
	testkit.AddHelper("keep", func([]string) error {
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	})
}

// questionsTo returns what a run asks until the network is gone, each at every family: "new" by a
// socket for each question, "same" by one that was there before, both by TCP and UDP (and by ping,
// if asked for) to a name outside and to a run of another cell, and "name" to the resolver.
func questionsTo(tcp, udp int, pings bool) (list []string) {
	to := slices.Concat(runs.OverEach("tcp", at("one.test", tcp)), runs.OverEach("udp", at("one.test", udp)),
		runs.OverEach("tcp", at("peer", answersAt)), runs.OverEach("udp", at("peer", answersAt)))
	if pings {
		to = append(to, runs.OverEach("ip", "one.test")...)
	}
	for _, at := range to {
		list = append(list, "new "+at, "same "+at)
	}
	list = append(list, "name udp4/198.18.0.1:53", "name tcp4/198.18.0.1:53")
	if runs.HasIPv6() { // where the resolver answers by TCP alone
		list = append(list, "name tcp6/[fde0:6be0:7e22::c612:1]:53")
	}
	return list
}

const (
	// answersAt is the port at which the run of another cell answers.
	answersAt = 7
	// tellsFrom is the first of the descriptors, one for each question, of files in which a run tells
	// of them: the stamps of the newest that had an answer, and of the newest that had none.
	tellsFrom = 3
	// answerIn is how long an answer may take.
	answerIn = time.Second
)

// asks asks the questions in its arguments, of which the last is a mark, again and again.
func asks(args []string) error {
	questions, mark := args[:len(args)-1], args[len(args)-1]
	failed := make(chan error)
	for i, q := range questions {
		go func() { failed <- ask(q, os.NewFile(tellsFrom+uintptr(i), q), mark) }()
	}
	return <-failed
}

// ask returns when it can't ask or tell.
func ask(question string, told *os.File, mark string) error {
	how, to, _ := strings.Cut(question, " ")
	one := lookUp
	if how != "name" {
		same, err := dialQuestion(to, testkit.Patience/2)
		if err != nil {
			return fmt.Errorf("%s: %w", question, err)
		}
		one = func(_ string, stamp []byte) ([]byte, error) { return same.exchange(stamp, mark) }
		if how == "new" {
			// Later not by its name, which is asked of somebody else.
			to = same.to
			one = func(to string, stamp []byte) ([]byte, error) {
				conn, err := dialQuestion(to, answerIn)
				if err != nil {
					return nil, err
				}
				defer conn.Close()
				return conn.exchange(stamp, mark)
			}
		}
	}
	var answered, unanswered newest
	for stamp := make([]byte, stampSize); ; time.Sleep(20 * time.Millisecond) {
		_, _ = stamps{}.Read(stamp)
		if got, err := one(to, stamp); err == nil {
			answered.take(got)
		} else {
			unanswered.take(stamp)
		}
		if _, err := told.WriteAt(slices.Concat(answered.bytes(), unanswered.bytes()), 0); err != nil {
			return err
		}
	}
}

// lookUp asks a resolver for a name.
func lookUp(resolver string, stamp []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerIn)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return runs.Dial("", resolver) }}
	_, err := r.LookupHost(ctx, "one.test")
	return stamp, err
}

// asked is a socket for questions.
type asked struct {
	conn interface {
		io.ReadWriteCloser
		SetDeadline(time.Time) error
	}
	to     string // its address, as for runs.Over
	before []byte // what is before each question and answer
	begun  []byte // of an answer of which the rest was late
}

// dialQuestion connects in time to an address for runs.Over, where "ip4/" and "ip6/" are for ping.
func dialQuestion(to string, within time.Duration) (*asked, error) {
	network, at := runs.Over("tcp", to)
	if !strings.HasPrefix(network, "ip") {
		conn, err := net.DialTimeout(network, at, within)
		if err != nil {
			return nil, err
		}
		return &asked{conn: conn, to: network + "/" + conn.RemoteAddr().String()}, nil
	}
	ip, err := net.ResolveIPAddr(network, at)
	if err != nil {
		return nil, err
	}
	s, head, err := pingSocket(ip.IP)
	if err == nil {
		err = unix.SetNonblock(s, true) // for the deadline
	}
	return &asked{conn: os.NewFile(uintptr(s), "ping"), to: network + "/" + ip.String(), before: head}, err
}

func (a *asked) Close() { a.conn.Close() }

// exchange sends a question, with a mark by which it is known elsewhere, and returns the stamp of
// the question to which an answer came.
func (a *asked) exchange(stamp []byte, mark string) ([]byte, error) {
	_ = a.conn.SetDeadline(time.Now().Add(answerIn))
	if _, err := a.conn.Write(slices.Concat(a.before, stamp, []byte(mark))); err != nil {
		return nil, err
	}
	b := make([]byte, len(a.before)+stampSize+len(mark))
	begun := copy(b, a.begun)
	n, err := io.ReadFull(a.conn, b[begun:])
	if err != nil {
		a.begun = b[:begun+n]
		return nil, err
	}
	a.begun = nil
	return b[len(a.before):][:stampSize], nil
}

// bytes returns the stamp.
func (n *newest) bytes() []byte { return binary.BigEndian.AppendUint64(nil, n.stamp.Load()) }

// answersHelper answers at a port of TCP and UDP. It says when it does.
func answersHelper([]string) error {
	l, err := net.Listen("tcp", at("", answersAt))
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", at("", answersAt))
	if err != nil {
		return err
	}
	fmt.Println("listening")
	var seen newest
	go seen.answerAll(l)
	seen.answer(udp)
	return nil
}

// answer answers datagrams with what is in them, and takes the stamps at their begin, until the
// socket is closed.
func (n *newest) answer(udp net.PacketConn) {
	for b := make([]byte, 1500); ; {
		size, from, err := udp.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		n.take(b[:min(size, stampSize)])
		_, _ = udp.WriteTo(b[:size], from)
	}
}

// answerAll does the same for each connection.
func (n *newest) answerAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for b := make([]byte, 1500); ; {
				size, err := conn.Read(b)
				if err != nil {
					return
				}
				n.take(b[:min(size, stampSize)])
				_, _ = conn.Write(b[:size])
			}
		}()
	}
}

// keepHost has another process keep the unix sockets that this process holds, among them the cell's
// control socket, as long as there is input, and the files, among them the lock by which others know
// that the cell is in use. So the cell goes on when this process is killed.
func keepHost() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	keeper := testkit.HelperCommand(context.Background(), "keep")
	keeper.Stdin = os.Stdin
	for _, f := range open {
		fd, _ := strconv.Atoi(f.Name())
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue // that of the directory itself
		}
		domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if domain != unix.AF_UNIX && st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		keeper.ExtraFiles = append(keeper.ExtraFiles, os.NewFile(uintptr(kept), "kept"))
	}
	if err := keeper.Start(); err != nil {
		return err
	}
	for _, f := range keeper.ExtraFiles {
		f.Close()
	}
	return nil
}

// told are the stamps of the newest questions of each kind with and without an answer.
func (u *pumping) told(t *testing.T) (answered, unanswered map[string]time.Time) {
	t.Helper()
	answered, unanswered = map[string]time.Time{}, map[string]time.Time{}
	for i, q := range u.questions {
		b, err := os.ReadFile(filepath.Join(u.dir, strconv.Itoa(i)))
		require.NoError(t, err)
		b = append(b, make([]byte, 2*stampSize)...)
		answered[q] = time.Unix(0, int64(binary.BigEndian.Uint64(b)))
		unanswered[q] = time.Unix(0, int64(binary.BigEndian.Uint64(b[stampSize:])))
	}
	return answered, unanswered
}

// requireEach waits until the run has asked a question of each kind after a moment, that was
// answered, or that was not.
func (u *pumping) requireEach(t *testing.T, after time.Time, withAnswer bool) {
	t.Helper()
	var missing []string
	defer func() {
		if t.Failed() {
			t.Log("missing:", missing)
		}
	}()
	testkit.Eventually(t, fmt.Sprintf("each question has ended, answered: %v", withAnswer), func() bool {
		answered, unanswered := u.told(t)
		told := unanswered
		if withAnswer {
			told = answered
		}
		missing = nil
		for q, at := range told {
			if !at.After(after) {
				missing = append(missing, q)
			}
		}
		return len(missing) == 0
	})
}

// capture takes the stamps of the echo requests with a mark that come to this machine.
func (n *newest) capture(t *testing.T, mark string) {
	conn, err := net.ListenPacket("ip4:icmp", "127.0.0.1")
	require.NoError(t, err)
	var reading sync.WaitGroup
	t.Cleanup(func() { conn.Close(); reading.Wait() })
	reading.Go(func() {
		for b := make([]byte, 1500); ; {
			size, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if size > 8+stampSize && b[0] == 8 && strings.Contains(string(b[8+stampSize:size]), mark) {
				n.take(b[8:][:stampSize])
			}
		}
	})
}
