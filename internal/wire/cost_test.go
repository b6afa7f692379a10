package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/big"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"
)

type (
	tile  struct{ Px [64 << 10]byte }
	tuple struct {
		_    struct{} `cbor:",toarray"`
		A    int
		Text string
		When time.Time
		Next *tuple
	}
	tagged struct {
		A int     `cbor:"1,keyasint"`
		B *tagged `cbor:"-2,keyasint"`
		C []tile  `json:"c,omitempty"`
	}
	embedding struct {
		*inner
		*Outer
		tile
		List []embedding
	}
	inner struct{ A, B int }
	Outer struct {
		Tile tile
		A    string // hides nothing: both are at one depth
	}
	self struct{ kids []self }
	tree map[string]tree
)

func (s *self) UnmarshalCBOR(b []byte) error { return decMode.Unmarshal(b, &s.kids) }
func (s self) MarshalCBOR() ([]byte, error)  { return encMode.Marshal(s.kids) }

// head is the head of an item.
func head(major byte, n int) []byte {
	return append([]byte{major<<5 | 26}, binary.BigEndian.AppendUint32(nil, uint32(n))...)
}

// many is an array of n items.
func many(n int, item ...byte) []byte { return append(head(4, n), bytes.Repeat(item, n)...) }

// nested is an array of n arrays of items.
func nested(n, m int, item ...byte) []byte { return many(n, many(m, item...)...) }

// distinct is a map of n pairs.
func distinct(n int, value ...byte) []byte {
	b := head(5, n)
	for i := range n {
		b = append(append(b, head(0, i)...), value...)
	}
	return b
}

func object(name string, value []byte) []byte {
	return append(append([]byte{0xa1, 0x60 | byte(len(name))}, name...), value...)
}

// allocated is how many bytes f allocates.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// bomb is a small message that becomes large when it is decoded as a type.
type bomb struct {
	t    reflect.Type
	body []byte
}

func bombOf[T any](body []byte) bomb { return bomb{reflect.TypeFor[T](), body} }

// TestBombs decodes messages that would take much more memory than they have bytes, or a long time.
// None does.
func TestBombs(t *testing.T) {
	const limit = 1 << 20
	empty := byte(0xa0)
	for name, b := range map[string]bomb{
		"large elements":           bombOf[[]tile](many(16<<10, empty)),
		"large elements, one byte": bombOf[struct{ T []tile }](object("T", many(16<<10, 0xa1, 0x62, 'P', 'x', 0x41, 1))),
		"pointers to large ones":   bombOf[[]*tile](many(16<<10, empty)),
		"pointers to pointers":     bombOf[[]***[512]byte](many(100_000, 0x80)),
		"large values of a map":    bombOf[map[int]tile](distinct(10_000, empty)),
		"large keys of a map":      bombOf[map[[4096]byte]bool](append(head(5, 10_000), bytes.Repeat([]byte{0x40, 0xf5}, 10_000)...)),
		"arrays of nothing":        bombOf[[][1 << 20]struct{}](many(100_000, 0x80)),
		"array of bytes":           bombOf[[][1 << 16]uint8](many(10_000, 0x40)),
		"maps of nothing":          bombOf[any](nested(10, 100_000, empty)),
		"maps of nothing, typed":   bombOf[[][]map[string]int](nested(10, 100_000, empty)),
		"lists of nothing":         bombOf[[][][]string](nested(10, 100_000, 0x80)),
		"any numbers":              bombOf[any](nested(10, 100_000, 0)),
		"tags":                     bombOf[any](nested(2, 100_000, 0xc6, 0xc6, 0xc6, 0)),
		"names of nobody":          bombOf[struct{ A int }](distinct(100_000, empty)),
		"names that are values":    bombOf[struct{ A int }](append([]byte{0xa1}, append(nested(10, 100_000, 0), 0)...)),
		"large tuples":             bombOf[[]tuple](many(100_000, 0x84, 0, 0x60, 0xf6, 0x84, 0, 0x60, 0xf6, 0xf6)),
		"names as numbers":         bombOf[tagged](append([]byte{0xa1}, object("c", many(100_000, empty))[1:]...)),
		"embedded pointers":        bombOf[[]embedding](many(10_000, object("Tile", []byte{empty})...)),
		"what hides one another":   bombOf[[]embedding](many(100_000, object("A", []byte{0})...)),
		"itself":                   bombOf[self](nested(10, 50_000, 0x80)),
		"itself as a map":          bombOf[tree](object("x", append(head(5, 50_000), manyNames(50_000, empty)...))),
		"digits":                   bombOf[big.Int](append(head(3, 1<<20), bytes.Repeat([]byte("7"), 1<<20)...)),
		"digits of a fraction":     bombOf[*big.Rat](append(head(3, 1<<20), bytes.Repeat([]byte("7"), 1<<20)...)),
		"a number for an int":      bombOf[int](append(append([]byte{0xc2}, head(2, 1<<20)...), bytes.Repeat([]byte{0xff}, 1<<20)...)),
		"a number for a float":     bombOf[[]float64](append(append([]byte{0x81, 0xc3}, head(2, 1<<20)...), bytes.Repeat([]byte{0xff}, 1<<20)...)),
		"a number for a struct":    bombOf[tile](append(append([]byte{0xc2}, head(2, 1<<20)...), bytes.Repeat([]byte{0xff}, 1<<20)...)),
		"a time that is none":      bombOf[[]time.Time](append(append([]byte{0x81}, head(3, 1<<20)...), bytes.Repeat([]byte{1}, 1<<20)...)),
	} {
		t.Run(name, func(t *testing.T) {
			require.Less(t, len(b.body), 3*limit)
			var err error
			used := allocated(func() {
				if err = decMode.Wellformed(b.body); err == nil {
					err = within(t.Context(), b.body, b.t, budgetFor(limit))
				}
				if err == nil {
					err = Unmarshal(b.body, reflect.New(b.t).Interface())
				}
			})
			require.Less(t, used, 2*budgetFor(limit), "%v", err)
			require.Error(t, err)
		})
	}
}

func manyNames(n int, value ...byte) (b []byte) {
	for i := range n {
		b = append(append(append(b, 0x64), binary.BigEndian.AppendUint32(nil, uint32(i))...), value...)
	}
	return b
}

// TestHonest has values of many kinds arrive intact that use much of a message's limit.
func TestHonest(t *testing.T) {
	const limit = 1 << 20
	numbers := make([]int, 100_000)
	words := make([]string, 20_000)
	tuples := make([]tuple, 10_000)
	numbered := make(map[string]int)
	for i := range words {
		words[i] = "word"
		numbered[big.NewInt(int64(i)).String()] = i
	}
	for i := range tuples {
		tuples[i] = tuple{A: i, Text: "x", When: time.Unix(0, 0).UTC()}
	}
	large := new(big.Int).Lsh(big.NewInt(1), 1<<22)
	requireHonest(t, limit, numbers)
	requireHonest(t, limit, words)
	requireHonest(t, limit, numbered)
	requireHonest(t, limit, tuples)
	requireHonest(t, limit, [][]int{numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers})
	requireHonest(t, limit, []tile{{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}})
	requireHonest(t, limit, bytes.Repeat([]byte{1}, limit-10))
	requireHonest(t, limit, strings.Repeat("x", limit-10))
	requireHonest(t, limit, large)
	requireHonest(t, limit, tagged{A: 1, B: &tagged{A: 2, C: make([]tile, 3)}})
	requireHonest(t, limit, []embedding{{Outer: &Outer{}, List: []embedding{{}, {}}}})
	requireHonest(t, limit, self{kids: []self{{kids: []self{}}, {kids: []self{}}}})
	requireHonest(t, limit, tree{"a": {"b": {}}, "c": {}})
	requireHonest(t, limit, map[string]any{"a": []any{uint64(1), "b", nil, 1.5, map[any]any{"c": []byte("d")}}})
	requireHonest(t, limit, cbor.RawMessage{0x81, 0})
	requireHonest(t, 100, words[:10]) // a little is allowed, whatever the limit is
}

func requireHonest[T any](t *testing.T, limit int64, v T) {
	t.Helper()
	b, err := encode(Envelope{}, v)
	require.NoError(t, err)
	require.LessOrEqual(t, len(b), int(limit))
	got, _, err := decode[T](t.Context(), b, budgetFor(limit))
	require.NoError(t, err, "%T", v)
	require.True(t, reflect.DeepEqual(v, got), "%T", v)
}

// TestDecodeEnds has decoding end with its context, and a type's own panic become an error.
func TestDecodeEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b, err := encode(Envelope{}, make([][]int, 10_000))
	require.NoError(t, err)
	_, _, err = decode[[][]int](ctx, b, 1<<30)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, within(ctx, b[1:], reflect.TypeFor[[][]int](), 1<<30), context.Canceled)
	b, err = encode(Envelope{}, 7)
	require.NoError(t, err)
	_, _, err = decode[panicking](t.Context(), b, 1<<20)
	require.ErrorContains(t, err, "panic: no")
}

type panicking struct{}

func (*panicking) UnmarshalCBOR([]byte) error { panic("no") }

// everything is a type for FuzzCost that holds every kind of value.
type everything struct {
	Tiles  []tile
	Array  [][300]uint16
	Maps   map[string]map[[200]byte]*tile
	Any    any
	Tuples []tuple
	Tagged []tagged
	Embed  []embedding
	Tree   tree
	Self   []self
	Big    []*big.Int
	Times  []time.Time
	Raw    []cbor.RawMessage
	Tag    []cbor.Tag
}

// FuzzCost decodes anything that is well-formed: it takes no more than within has found.
func FuzzCost(f *testing.F) {
	for _, v := range []any{everything{}, everything{Tiles: make([]tile, 1), Array: make([][300]uint16, 2), Any: []any{1, "x"}, Tuples: make([]tuple, 3), Tagged: make([]tagged, 2),
		Embed: []embedding{{Outer: &Outer{}}}, Tree: tree{"a": {}}, Self: []self{{}}, Big: []*big.Int{big.NewInt(1)}, Times: make([]time.Time, 1)}} {
		b, err := Marshal(v)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add(object("Tiles", many(20, 0xa0)))
	f.Add(object("Maps", object("x", []byte{0xa1, 0x40, 0xa0})))
	f.Add(object("Embed", many(20, object("Tile", []byte{0xa0})...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if decMode.Wellformed(b) != nil {
			return
		}
		const budget = 16 << 20
		m := &meter{ctx: t.Context(), b: b, left: budget}
		if m.item(costOf(reflect.TypeFor[everything]())) != nil {
			return
		}
		require.Equal(t, len(b), m.off)
		used := allocated(func() { _ = Unmarshal(b, &everything{}) })
		// An item that does not fit its type leaves an error, and Go rounds allocations up.
		require.LessOrEqual(t, used, 2*(budget-m.left)+1024*int64(len(b))+256<<10)
	})
}

// TestBombEnvelope sends a number of many digits in the envelope, and for a name that the type does
// not have.
func TestBombEnvelope(t *testing.T) {
	number := append(append([]byte{0xc2}, head(2, 1<<20)...), bytes.Repeat([]byte{0xff}, 1<<20)...)
	for name, envelope := range map[string][]byte{"until": object("Until", number), "fields": object("Fields", append([]byte{0x81}, number...))} {
		t.Run(name, func(t *testing.T) {
			_, _, err := decode[int](t.Context(), append(envelope, 1), budgetFor(1<<20))
			require.ErrorContains(t, err, "a number of 1048576 bytes")
			require.Less(t, len(err.Error()), 1000)
		})
	}
	v, e, err := decode[struct{ A int }](t.Context(), append(object("X", number), object("X", number)...), budgetFor(1<<20))
	require.NoError(t, err)
	require.Zero(t, v)
	require.Zero(t, e)
	_, e, err = decode[int](t.Context(), append(object("Until", []byte{7}), 1), budgetFor(1<<20))
	require.NoError(t, err)
	require.Equal(t, int64(7), e.Until)
}
