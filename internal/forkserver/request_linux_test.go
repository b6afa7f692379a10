package forkserver

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// encode is what Send writes.
func (r *Request) encode(t testing.TB) []byte {
	t.Helper()
	head, err := r.marshal()
	require.NoError(t, err)
	return append(head, r.Image...)
}

// decode parses a request as the fork server does.
func decode(t testing.TB, b []byte) *Request {
	t.Helper()
	v, ok := parseHead(b)
	require.True(t, ok)
	require.Len(t, b, requestHead+v.uid+v.gid+v.tree+v.image)
	rest := b[requestHead:]
	next := func(n int) []byte {
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	r := &Request{CloneFlags: v.flags, UIDMap: string(next(v.uid)), GIDMap: string(next(v.gid)), InNetwork: v.net}
	if tree, ok := bytes.CutSuffix(next(v.tree), []byte{0}); ok {
		r.Tree = string(tree)
	} else {
		require.Zero(t, v.tree, "a path without end")
	}
	r.Image = rest
	return r
}

func TestRequestRoundTrip(t *testing.T) {
	tests := []Request{
		{Image: []byte{}},
		{Image: []byte("image")},
		{CloneFlags: unix.CLONE_NEWUSER, UIDMap: "0 1 2\n", GIDMap: "0 3 4\n", Image: []byte("image")},
		{CloneFlags: 1<<64 - 1, Tree: "/cell/templates/7", Image: []byte("image")},
		{InNetwork: true, Tree: "/t", Image: []byte("image")},
		{UIDMap: strings.Repeat("u", maxIDMap), GIDMap: strings.Repeat("g", maxIDMap), Tree: strings.Repeat("t", maxIDMap-1), Image: make([]byte, program.MaxImage)},
	}
	for _, want := range tests {
		require.Equal(t, &want, decode(t, want.encode(t)))
	}
}

func TestRequestTooLarge(t *testing.T) {
	long := strings.Repeat("x", maxIDMap+1)
	for _, r := range []Request{{UIDMap: long}, {GIDMap: long}, {Tree: long[1:]}, {Image: make([]byte, program.MaxImage+1)}} {
		_, err := r.marshal()
		require.ErrorContains(t, err, "too large")
	}
}

func TestMalformedHead(t *testing.T) {
	good := (&Request{UIDMap: "u", GIDMap: "g", Tree: "t", Image: []byte("image")}).encode(t)
	tests := []struct {
		name   string
		damage func(b []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"part of a head", func(b []byte) []byte { return b[:requestHead-1] }},
		{"magic", func(b []byte) []byte { b[0]++; return b }},
		{"image", func(b []byte) []byte { binary.NativeEndian.PutUint32(b[4:], program.MaxImage+1); return b }},
		{"uid map", func(b []byte) []byte { binary.NativeEndian.PutUint32(b[16:], maxIDMap+1); return b }},
		{"gid map", func(b []byte) []byte { binary.NativeEndian.PutUint32(b[20:], 1<<31); return b }},
		{"tree", func(b []byte) []byte { binary.NativeEndian.PutUint32(b[24:], 1<<31); return b }},
		{"network", func(b []byte) []byte { binary.NativeEndian.PutUint32(b[28:], 2); return b }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, ok := parseHead(test.damage(bytes.Clone(good)))
			require.False(t, ok)
		})
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte{})
	f.Add((&Request{Image: []byte("image"), InNetwork: true}).encode(f))
	f.Add((&Request{CloneFlags: unix.CLONE_NEWUSER, UIDMap: "0 1 1\n", GIDMap: "0 1 1\n", Tree: "/t"}).encode(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, ok := parseHead(b)
		if !ok {
			return
		}
		for _, n := range []int{v.uid, v.gid, v.tree} {
			require.LessOrEqual(t, uint(n), uint(maxIDMap))
		}
		require.LessOrEqual(t, uint(v.image), uint(program.MaxImage))
		require.Equal(t, b[:requestHead], v.append(nil), "not the only encoding of what it says")
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(uint64(0), "", "", "", []byte{})
	f.Add(uint64(unix.CLONE_NEWPID), "0 1 1\n", "0 2 1\n", "/cell/templates/0", []byte("image"))
	f.Fuzz(func(t *testing.T, flags uint64, uid, gid, tree string, image []byte) {
		want := &Request{CloneFlags: flags, UIDMap: uid, GIDMap: gid, Tree: tree, Image: image}
		head, err := want.marshal()
		if err != nil {
			require.GreaterOrEqual(t, max(len(uid), len(gid), len(tree), len(image)), maxIDMap)
			return
		}
		got := decode(t, append(head, image...))
		require.Equal(t, want.encode(t), got.encode(t))
		require.Equal(t, [3]string{uid, gid, tree}, [3]string{got.UIDMap, got.GIDMap, got.Tree})
	})
}

// FuzzMessage does what the host does with anything that comes from a run's socket. The control
// data is the kernel's: with or without the sender's credentials and descriptors, which are open.
func FuzzMessage(f *testing.F) {
	event := program.Event{Kind: program.Cloned}.Marshal()
	f.Add([]byte{}, false, uint8(0), 0)
	f.Add(event, true, uint8(0), 0)
	f.Add(event, true, uint8(1), 0)
	f.Add(event, false, uint8(3), unix.MSG_CTRUNC)
	f.Add(event[:12], true, uint8(2), 0)
	f.Add(append(event, 0), true, uint8(1), unix.MSG_TRUNC)
	f.Add([]byte{}, true, uint8(1), 0)
	f.Fuzz(func(t *testing.T, b []byte, credentials bool, files uint8, flags int) {
		var oob []byte
		if credentials {
			oob = unix.UnixCredentials(&unix.Ucred{Pid: 7})
		}
		opened := make([]int, files)
		for i := range opened {
			fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			require.NoError(t, err)
			opened[i] = fd
		}
		if files > 0 {
			oob = append(oob, unix.UnixRights(opened...)...)
		}
		m, err := new(Conn).parse(b, oob, flags)
		if err == nil {
			require.Len(t, b, program.EventSize)
			require.NotEqual(t, "?", m.Kind.String())
			require.Equal(t, credentials, m.PID == 7)
		}
		require.Equal(t, files > 0, m.File != nil)
		if m.File != nil {
			require.NoError(t, m.File.Close())
		}
		for _, fd := range opened {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			require.ErrorIs(t, err, unix.EBADF, "descriptor left open")
		}
	})
}
