//go:build linux

package queue

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever is stored as a record: it is refused, or can be written again, and files of it can be
// listed and have no link that leads out.
func FuzzDecode(f *testing.F) {
	task, err := (&Task{Command: shell("true"), Env: []string{"A=b"}, Outputs: []string{"out"}}).record(nil)
	require.NoError(f, err)
	task.Inputs = &bundle{Inline: &bundleRecord{Version: version, Entries: []entry{
		{Name: "d/a", Mode: 0o644, Size: 1, Data: []byte("a")},
		{Name: "d/l", Mode: fs.ModeSymlink | 0o777, Link: "../d/./a"},
		{Name: "b", Mode: 0o600, Size: 9, Sum: make([]byte, 32)},
	}}}
	add := func(b []byte, err error) {
		require.NoError(f, err)
		f.Add(b)
	}
	add(encode(task))
	add(encode(&stateRecord{Version: version, State: Done, Run: &runRecord{Reason: "exited", Outputs: task.Inputs, Missing: []string{"x"}}}))
	add(encode(&logRecord{Version: version, Data: []byte("line\n")}))
	add(encode(&blobRecord{Version: version, Upload: "u", Size: 1}))
	add(encode(&workerRecord{Version: version, Classes: []string{"default"}}))
	task.Replica = &replicaRecord{Service: "s", Port: 80, Health: "/"}
	add(encode(&serviceRecord{Version: version, Task: task, Batch: 1, Class: "a", Route: "normal-s", IDs: []string{"a.normal-s.x"}}))
	add(encode(&taskRecord{Version: version, Inputs: task.Inputs, Call: &callRecord{Func: "f", Build: strings.Repeat("a", 64)}}))
	add(encode(&healthRecord{Version: version, Address: "127.0.0.1:1", Healthy: true}))
	f.Add([]byte{0xbf, 0x00, 0x01, 0xff})                                           // no end
	f.Add([]byte{0xa1, 0x00, 0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) // 2^64-1
	f.Add([]byte{0xa2, 0x00, 0x01, 0x00, 0x01})                                     // twice
	f.Add([]byte("\xa2\x00\x01\x01\x9b\x7f\xff\xff\xff\xff\xff\xff\xff"))           // huge
	f.Add([]byte("\xa2\x00\x01\x06" + strings.Repeat("\xa1\x01", 20) + "\x00"))     // deep
	f.Add([]byte{0xa2, 0x00, 0x01, 0x07, 0x61, 0xff})                               // no UTF-8
	f.Add([]byte{0xc1, 0xa1, 0x00, 0x01})                                           // a tag
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, func(r *taskRecord) {
			if r.check() == nil {
				_, _ = r.Limits.within(Limits{})
				requireInside(t, r.Inputs)
			}
		})
		again(t, b, func(r *stateRecord) {
			if r.Run != nil {
				_, _ = r.Run.result()
				requireInside(t, r.Run.Outputs)
			}
		})
		again(t, b, func(*logRecord) {})
		again(t, b, func(*blobRecord) {})
		again(t, b, func(*workerRecord) {})
		again(t, b, func(*healthRecord) {})
		again(t, b, func(r *serviceRecord) {
			if r.valid() {
				_ = r.resize(0)
			}
		})
	})
}

func again[T versioned](t *testing.T, b []byte, use func(*T)) {
	r, err := decode[T](b)
	if err != nil {
		return
	}
	use(r)
	b, err = encode(r)
	require.NoError(t, err)
	_, err = decode[T](b)
	require.NoError(t, err)
}

// requireInside requires that the links of files lead to names in it, also if links are on their
// way.
func requireInside(t *testing.T, b *bundle) {
	if b == nil || b.Inline == nil {
		return
	}
	files, err := (&Queue{}).unpack(context.Background(), b)
	if err != nil {
		return
	}
	for name, n := range files.(*bundleFS).nodes {
		if n.Mode().Type() != fs.ModeSymlink {
			continue
		}
		_, err := fs.Stat(files, name)
		require.True(t, err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLoop), "%q: %v", name, err)
		at := path.Dir(name)
		for part := range strings.SplitSeq(n.Link, "/") {
			require.False(t, part == ".." && at == ".", "%q leads out: %q", name, n.Link)
			if at = path.Join(at, part); files.(*bundleFS).nodes[at] != nil && files.(*bundleFS).nodes[at].Mode().Type() == fs.ModeSymlink {
				at = "." // as far up as it may lead
			}
		}
	}
}
