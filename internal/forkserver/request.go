// Package forkserver is PID 1 of a cell and the host's connection to it. The fork server receives a
// program with its descriptors, clones, and goes on to the next request. It decides nothing: what a
// run may do is in its program, when it ends is up to the host, and the run itself reports its
// events over a socket of its own.
package forkserver

import (
	"encoding/binary"
	"fmt"

	"github.com/cellkit/sandbox/internal/program"
)

// A Request asks for one clone.
type Request struct {
	// CloneFlags go to clone3(2). Namespaces that need no clone should be unshared by the
	// program, in parallel with the next request.
	CloneFlags uint64
	// UIDMap and GIDMap are written for the clone's user namespace, in the format of
	// user_namespaces(7). They must be empty without CLONE_NEWUSER.
	UIDMap, GIDMap string
	// InNetwork says that the last of the request's files is a network namespace, which the
	// clone begins in. The program does not get it.
	InNetwork bool
	// Tree, if not empty, is a directory of the cell. A detached copy of what is mounted there,
	// for this clone alone, follows the request's files.
	Tree string
	// Image is the encoded program.
	Image []byte
}

// A request is a head, the three strings and the image. A zero byte follows the last string.
const (
	requestMagic = 0x53425251 // "SBRQ"
	requestHead  = 32
	maxIDMap     = 4096 // user_namespaces(7): one page; PATH_MAX is the same
)

var native = binary.NativeEndian

// marshal encodes the request without the image.
func (r *Request) marshal() ([]byte, error) {
	tree := len(r.Tree)
	if tree > 0 {
		tree++
	}
	v := view{flags: r.CloneFlags, uid: len(r.UIDMap), gid: len(r.GIDMap), tree: tree, image: len(r.Image), net: r.InNetwork}
	b := v.append(make([]byte, 0, requestHead+v.uid+v.gid+v.tree))
	if _, ok := parseHead(b); !ok {
		return nil, fmt.Errorf("request too large: strings of %d, %d and %d bytes, program of %d", v.uid, v.gid, v.tree, v.image)
	}
	b = append(append(append(b, r.UIDMap...), r.GIDMap...), r.Tree...)
	if tree > 0 {
		b = append(b, 0)
	}
	return b, nil
}

// view is the content of a head: the clone's flags, and the lengths of what follows.
type view struct {
	flags                 uint64
	uid, gid, tree, image int
	net                   bool
}

func (v *view) append(b []byte) []byte {
	b = native.AppendUint32(b, requestMagic)
	b = native.AppendUint32(b, uint32(v.image))
	b = native.AppendUint64(b, v.flags)
	b = native.AppendUint32(b, uint32(v.uid))
	b = native.AppendUint32(b, uint32(v.gid))
	b = native.AppendUint32(b, uint32(v.tree))
	net := uint32(0)
	if v.net {
		net = 1
	}
	return native.AppendUint32(b, net)
}

// parseHead parses a head. It rejects lengths that are out of bounds.
//
//go:norace
func parseHead(b []byte) (v view, ok bool) {
	if len(b) < requestHead || native.Uint32(b) != requestMagic {
		return v, false
	}
	image, uid, gid, tree, net := native.Uint32(b[4:]), native.Uint32(b[16:]), native.Uint32(b[20:]), native.Uint32(b[24:]), native.Uint32(b[28:])
	if image > program.MaxImage || uid > maxIDMap || gid > maxIDMap || tree > maxIDMap || net > 1 {
		return v, false
	}
	return view{native.Uint64(b[8:]), int(uid), int(gid), int(tree), int(image), net == 1}, true
}
