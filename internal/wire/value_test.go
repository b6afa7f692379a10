package wire

import (
	"bytes"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"
)

type value struct {
	A    int
	Text string
	When time.Time
	List []value
	Any  any
	Map  map[string]int
	R    io.Reader
	F    *os.File
	less int
}

var shape = ShapeOf(reflect.TypeFor[value]())

func wrapped(f *os.File) io.Reader { return f }

func TestShape(t *testing.T) {
	require.Equal(t, 2, shape.Files())
	require.Equal(t, shape, ShapeOf(reflect.TypeFor[*value]()))
	for _, typ := range []reflect.Type{reflect.TypeFor[int](), reflect.TypeFor[[]value](), reflect.TypeFor[struct{ v value }](), reflect.TypeFor[io.Reader]()} {
		require.Zero(t, ShapeOf(typ).Files(), typ)
	}
}

// TestPack has values with streams and files arrive as they were sent. The caller's are not
// changed.
func TestPack(t *testing.T) {
	in := &value{A: 1, Text: "x", When: time.Now().Round(0), List: []value{{A: 2}}, Map: map[string]int{"a": 1}, R: strings.NewReader("stream"), F: os.Stdin, less: 3}
	before := *in
	b, files, streams, ends, err := Pack(shape, in, Envelope{Until: 77})
	require.NoError(t, err)
	require.Equal(t, before, *in)
	require.Len(t, streams, 1)
	require.Equal(t, []*os.File{ends[0], os.Stdin}, files)
	out, e, err := Unpack[*value](shape, Message{Body: b, Files: files}, wrapped)
	require.NoError(t, err)
	require.EqualValues(t, 77, e.Until)
	require.True(t, in.When.Equal(out.When))
	require.Equal(t, ends[0], out.R)
	require.Equal(t, os.Stdin, out.F)
	_, err = io.Copy(streams[0].To, streams[0].From)
	require.NoError(t, err)
	require.NoError(t, streams[0].To.Close())
	got, err := io.ReadAll(out.R)
	require.NoError(t, err)
	require.Equal(t, "stream", string(got))
	require.NoError(t, ends[0].Close())
	out.R, out.F, out.When, in.R, in.F, in.less = nil, nil, in.When, nil, nil, 0
	require.Equal(t, in, out)

	b, files, _, _, err = Pack[*value](shape, nil, Envelope{})
	require.NoError(t, err)
	require.Empty(t, files)
	out, _, err = Unpack[*value](shape, Message{Body: b}, wrapped)
	require.NoError(t, err)
	require.Nil(t, out)
	_, _, _, _, err = Pack(Shape{}, func() {}, Envelope{})
	require.ErrorContains(t, err, "encoding a func()")
}

// TestUnpackLiar decodes values that no worker encodes.
func TestUnpackLiar(t *testing.T) {
	encode := func(v any) []byte {
		b, err := cbor.Marshal(v)
		require.NoError(t, err)
		return b
	}
	envelope := func(v []byte, fields ...int) []byte {
		return slices.Concat(encode(Envelope{Fields: fields}), v)
	}
	deep := append(bytes.Repeat([]byte{0x81}, MaxDepth+1), 0)
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	for want, m := range map[string]Message{
		"EOF":                         {},
		"cbor":                        {Body: []byte{0xff}},
		"EOF ":                        {Body: envelope([]byte{})},
		"cannot unmarshal":            {Body: envelope(encode("text"))},
		"exceeded max nested level":   {Body: envelope(append([]byte{0xa1, 0x63, 'A', 'n', 'y'}, deep...))},
		"exceeded max number":         {Body: envelope(encode(map[string]any{"Any": make([]int, MaxElements+1)}))},
		"unexpected EOF":              {Body: envelope([]byte{0x9b, 0, 0, 0, 0, 0, 1, 0, 0})},
		"indefinite-length":           {Body: envelope([]byte{0x9f, 0xff})},
		"cannot unmarshal ":           {Body: envelope(encode(map[string]any{"R": 1}))},
		"found duplicate map key":     {Body: envelope([]byte{0xa2, 0x61, 'A', 1, 0x61, 'A', 2})},
		"0 files for 1 fields":        {Body: envelope(encode(value{}), 6)},
		"1 files for 0 fields":        {Body: envelope(encode(value{})), Files: []*os.File{null}},
		"field that takes none":       {Body: envelope(encode(value{}), 0), Files: []*os.File{null}},
		"field that takes none ":      {Body: envelope(encode(value{}), -1), Files: []*os.File{null}},
		"field that takes none  ":     {Body: envelope(encode(value{}), 6, 6), Files: []*os.File{null, null}},
		"field that takes none    ":   {Body: envelope(encode(value{}), 1<<40), Files: []*os.File{null}},
		"field that takes none      ": {Body: envelope(encode(nil), 6), Files: []*os.File{null}},
	} {
		t.Run(want, func(t *testing.T) {
			_, _, err := Unpack[*value](shape, m, wrapped)
			require.ErrorContains(t, err, strings.TrimSpace(want))
		})
	}
	v, _, err := Unpack[value](shape, Message{Body: envelope(encode(map[string]any{"F": map[string]int{"x": 1}}))}, wrapped)
	require.NoError(t, err)
	require.Nil(t, v.F, "a file that is none panics when it is used")
}

func FuzzUnpack(f *testing.F) {
	for _, v := range []value{{}, {A: 1, Text: "x", List: []value{{A: 2}}, Any: []any{1, "a", nil, 1.5}, Map: map[string]int{"a": 1}}} {
		b, _, _, _, err := Pack(shape, v, Envelope{Until: 1, Fields: []int{6}})
		require.NoError(f, err)
		f.Add(b, 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		m := Message{Body: b, Files: make([]*os.File, min(max(files, 0), 4))}
		for i := range m.Files {
			m.Files[i] = os.Stdin
		}
		v, e, err := Unpack[value](shape, m, wrapped)
		if err != nil {
			return
		}
		if v.F != nil {
			require.Equal(t, os.Stdin, v.F)
		}
		require.Len(t, m.Files, len(e.Fields))
		v.R, v.F = nil, nil
		again, _, _, _, err := Pack(shape, v, Envelope{})
		require.NoError(t, err)
		_, _, err = Unpack[value](shape, Message{Body: again}, wrapped)
		require.NoError(t, err)
	})
}
