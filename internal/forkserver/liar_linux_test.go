package forkserver

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// TestLiar sends what a process at the other end that was taken over may send, and no program does.
// Every lie is found out, none uses up a descriptor, and the messages come to an end.
func TestLiar(t *testing.T) {
	fd, err := unix.MemfdCreate("liar", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	files := func(n int) []byte { return unix.UnixRights(slices.Repeat([]int{fd}, n)...) }
	event := func(k program.Kind) []byte { return program.Event{Kind: k}.Marshal() }
	figure := func(n uint64) []byte {
		return native.AppendUint64(event(program.Exited)[:program.EventSize-8], n)
	}
	lies := map[string]struct {
		data, oob []byte
		want      string
	}{
		"nothing":                          {nil, nil, "event of 0 bytes"},
		"nothing, with descriptors":        {nil, files(20), "event of 0 bytes"},
		"too much":                         {make([]byte, 100_000), nil, "truncated"},
		"too much, with descriptors":       {make([]byte, 100_000), files(3), "truncated"},
		"too little":                       {event(program.Exited)[1:], files(1), "event of 39 bytes"},
		"no kind of event":                 {event(program.NumKinds), files(1), "unknown kind"},
		"more descriptors than fit":        {event(program.Cloned), files(200), ErrLostFile.Error()},
		"a clone that is not there":        {event(program.Cloned), nil, "no descriptor"},
		"an end with a descriptor":         {event(program.Exited), files(2), "a descriptor with an event exited"},
		"a memory size beyond all":         {figure(1 << 63), nil, "out of range"},
		"a memory size beyond most":        {figure(1 << 54), nil, "out of range"},
		"a clone with other descriptors":   {event(program.Cloned), files(9), ""},
		"an end before there was a start":  {event(program.Exited), nil, ""},
		"a failure of a call that is none": {program.Event{Kind: program.Failed, Index: 1 << 31, Errno: 1 << 31}.Marshal(), nil, ""},
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			conn, end := newConn(t)
			defer conn.Close()
			const rounds = 20
			go func() {
				for range rounds {
					say(end, lie.data, lie.oob)
				}
				unix.Close(end)
			}()
			require.NoError(t, conn.sock.SetReadDeadline(time.Now().Add(patience)))
			for round := range rounds {
				m, err := conn.Next()
				if m.File != nil {
					require.NoError(t, m.File.Close())
				}
				switch {
				case lie.want != "" && round == 0:
					require.ErrorContains(t, err, lie.want)
				case round == 0:
					require.NoError(t, err)
				default:
					require.Error(t, err)
				}
			}
			_, err := conn.Next()
			require.Equal(t, io.EOF, err)
			links, err := filepath.Glob("/proc/self/fd/*")
			require.NoError(t, err)
			require.Len(t, slices.DeleteFunc(links, func(link string) bool {
				to, _ := os.Readlink(link)
				return !strings.HasPrefix(to, "/memfd:liar")
			}), 1, "what came with lies is closed")
		})
	}
}

// say sends a message that may be empty, which unix.Sendmsg can't.
func say(socket int, data, oob []byte) {
	msg := unix.Msghdr{}
	if len(data) > 0 {
		msg.Iov, msg.Iovlen = &unix.Iovec{Base: &data[0], Len: uint64(len(data))}, 1
	}
	if len(oob) > 0 {
		msg.Control, msg.Controllen = &oob[0], uint64(len(oob))
	}
	_, _, _ = unix.Syscall(unix.SYS_SENDMSG, uintptr(socket), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
}

// TestLiarIsSilent has the other end neither send nor read. The host can still give up waiting, and
// what it sends does not block.
func TestLiarIsSilent(t *testing.T) {
	conn, end := newConn(t)
	defer unix.Close(end)
	defer conn.Close()
	go conn.Interrupt()
	_, err := conn.Next()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	conn.Continue()
	require.NoError(t, conn.Go())
	require.NoError(t, conn.HangUp())
}
