package wire

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pair(t testing.TB, limit int64) (*Conn, *Conn) {
	t.Helper()
	near, far, err := Pair(limit)
	require.NoError(t, err)
	return near, NewConn(far, limit)
}

// TestMessages sends messages of many sizes both ways, with files and without.
func TestMessages(t *testing.T) {
	a, b := pair(t, 10<<20)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	for range 2 {
		for _, size := range []int{0, 1, 1000, 64 << 10, 64<<10 + 1, 5 << 20, 10 << 20} {
			for _, files := range [][]*os.File{nil, {w}, {w, w, w}} {
				body := bytes.Repeat([]byte{byte(size)}, size)
				sent := make(chan error)
				go func() { sent <- a.Send(Message{Call, body, files}) }()
				m, err := b.Receive(3, Cancel, Call)
				require.NoError(t, err)
				require.NoError(t, <-sent)
				require.Equal(t, Call, m.Kind)
				require.True(t, bytes.Equal(body, m.Body))
				require.Len(t, m.Files, len(files))
				m.Close()
			}
		}
		a, b = b, a
	}
	require.ErrorIs(t, a.Send(Message{Kind: Call, Body: make([]byte, 10<<20+1)}), ErrTooLarge)
	require.ErrorContains(t, a.Send(Message{Kind: Call, Files: make([]*os.File, MaxFiles+1)}), "at most 64")
	require.True(t, a.Quiet())
	require.NoError(t, b.Send(Message{Kind: Hello}))
	require.False(t, a.Quiet())
	_, err = a.Receive(0, Hello)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	require.False(t, a.Quiet())
	_, err = a.Receive(0, Hello)
	require.Equal(t, io.EOF, err)
	require.ErrorIs(t, a.Send(Message{Kind: Call}), unix.EPIPE)
	require.NoError(t, a.Close())
	_, err = a.Receive(0, Hello)
	require.ErrorIs(t, err, os.ErrClosed)
	require.NoError(t, w.Close())
	_, err = r.Read(make([]byte, 1)) // the other end is closed
	require.Equal(t, io.EOF, err)
}

// TestLiar sends what a process at the other end that was taken over may send, and no worker does.
func TestLiar(t *testing.T) {
	head := func(size uint32, kind Kind, files byte) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, size), byte(kind), files)
	}
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	for want, lie := range map[string]struct {
		data  []byte
		files int
	}{
		"EOF":                                 {nil, 0},
		"unexpected EOF":                      {[]byte{1, 2}, 0},
		"unexpected message ?":                {head(0, 77, 0), 3},
		"unexpected message call":             {head(0, Call, 0), 0},
		"unexpected message answer":           {head(1<<32-1, Answer, 0), 0},
		"message too large":                   {head(1<<20+1, Hello, 0), 0},
		"0 files came with a message that ha": {head(0, Hello, 1), 0},
		"5 files came with a message that ma": {head(0, Hello, 5), 5},
		"2 files came with a message that ha": {head(0, Hello, 0), 2},
		"unexpected EOF ":                     {head(1<<20, Hello, 0), 0},
	} {
		t.Run(want, func(t *testing.T) {
			near, far, err := Pair(1 << 20)
			require.NoError(t, err)
			if len(lie.data) > 0 {
				fds := make([]int, lie.files)
				for i := range fds {
					fds[i] = int(null.Fd())
				}
				require.NoError(t, unix.Sendmsg(int(far.Fd()), lie.data, unix.UnixRights(fds...), nil, 0))
			}
			require.NoError(t, far.Close())
			_, err = near.Receive(2, Hello)
			require.ErrorContains(t, err, strings.TrimSpace(want))
			require.NoError(t, near.Close())
			links, err := filepath.Glob("/proc/self/fd/*")
			require.NoError(t, err)
			n := 0
			for _, link := range links {
				if to, _ := os.Readlink(link); to == os.DevNull {
					n++
				}
			}
			require.LessOrEqual(t, n, 3, "what came was not closed")
		})
	}
}
