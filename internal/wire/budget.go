package wire

import (
	"context"
	"fmt"
	"reflect"
)

// Bounds of what decoding a message may take: see RATIONALE, "What may decoding a result take?".
const (
	// DecodedPerByte is how many bytes decoding a message may take for each byte of its limit:
	// numbers below 24 take one byte encoded, and eight as Go's int.
	DecodedPerByte = 8
	// decodedFloor is what any message may take in addition.
	decodedFloor = 1 << 20
)

// budgetFor returns how many bytes decoding a message with the given limit may take.
func budgetFor(limit int64) int64 { return decodedFloor + DecodedPerByte*limit }

// meter reads an encoded value before it is decoded, and adds up what decoding will take: bytes,
// and steps that are not proportional to the encoded bytes.
type meter struct {
	ctx  context.Context
	b    []byte
	off  int
	left int64
	seen int // number of items
}

// within reports whether decoding b, which must be well-formed, into a value of type t stays within
// the budget. It ends early if ctx does.
func within(ctx context.Context, b []byte, t reflect.Type, budget int64) error {
	m := &meter{ctx: ctx, b: b, left: budget}
	err := m.item(costOf(t))
	if err != nil && m.left < 0 {
		err = fmt.Errorf("%w: decoding it would take more than %d bytes, %d for each that it may have", ErrTooLarge, budget, DecodedPerByte)
	}
	return err
}

func (m *meter) spend(n int64) error {
	if m.left -= n; m.left < 0 {
		return ErrTooLarge
	}
	return nil
}

// The major types of RFC 8949, section 3.1.
const (
	majorBytes  = 2
	majorText   = 3
	majorArray  = 4
	majorMap    = 5
	majorTag    = 6
	majorSimple = 7

	simpleNull      = 22
	simpleUndefined = 23
)

// head reads the head of an item: its major type and its argument.
func (m *meter) head() (major byte, n uint64) {
	first := m.b[m.off]
	m.off++
	major, n = first>>5, uint64(first&31)
	if n >= 24 { // no indefinite lengths: decMode forbids them
		size := 1 << (n - 24)
		n = 0
		for _, b := range m.b[m.off : m.off+size] {
			n = n<<8 | uint64(b)
		}
		m.off += size
		if major == majorSimple {
			n = 0 // a float, or a value other than null
		}
	}
	return major, n
}

// item adds the cost of the next item as a value of a type.
func (m *meter) item(c *cost) error {
	begin := m.off
	major, n, bignum, err := m.untag()
	if err != nil {
		return err
	}
	isNull := major == majorSimple && (n == simpleNull || n == simpleUndefined)
	for ; c != nil && c.kind == pointer && !isNull; c = c.elem {
		if err := m.spend(c.elem.size + 8); err != nil {
			return err
		}
	}
	kind := scalar
	if c != nil {
		kind = c.kind
	}
	if c != nil && bignum && n > 64 && kind != anything && kind != number && kind != slice && kind != array {
		return fmt.Errorf("a number of %d bytes for a %v", n, c.t) // the decoder's error would contain its digits
	}
	if kind == raw || kind == custom {
		return m.opaque(c, begin, major, n)
	}
	switch major {
	case majorBytes, majorText:
		return m.str(c, kind, major, int64(n))
	case majorArray:
		return m.list(c, kind, int64(n))
	case majorMap:
		return m.pairs(c, kind, int64(n))
	}
	if kind == anything || kind == number {
		return m.spend(48)
	}
	return nil
}

// untag reads the tags of an item and its head.
func (m *meter) untag() (major byte, n uint64, bignum bool, err error) {
	if m.seen++; m.seen%4096 == 0 && m.ctx.Err() != nil {
		return 0, 0, false, m.ctx.Err()
	}
	major, n = m.head()
	for major == majorTag {
		bignum = n == 2 || n == 3
		if err := m.spend(64); err != nil {
			return 0, 0, false, err
		}
		major, n = m.head()
	}
	return major, n, bignum && major == majorBytes, nil
}

// str adds a string of bytes, or of text.
func (m *meter) str(c *cost, kind costKind, major byte, n int64) error {
	m.off += int(n)
	if c == nil {
		return nil
	}
	switch kind {
	case anything:
		n += 48
	case moment:
		if n > 64 {
			return fmt.Errorf("a text of %d bytes for a time", n) // the decoder's error would contain it several times
		}
	case array: // the rest is set to zero, one by one
		n = 8 * max(0, c.length-n)
	case number:
		if major == majorText {
			n = saturate(n, n/64+1)
		}
	case scalar, slice, text, dict, record:
		n += 16
	}
	return m.spend(n)
}

// list adds an array of n items.
func (m *meter) list(c *cost, kind costKind, n int64) error {
	var elem *cost
	own := int64(0)
	switch kind {
	case anything:
		elem, own = c, 48+16*n
	case slice:
		elem, own = c.elem, saturate(n, c.elem.size)
	case array:
		elem, own = c.elem, 8*max(0, c.length-n)
	case record:
		return m.tuple(c, n)
	}
	err := m.spend(own)
	for i := int64(0); i < n && err == nil; i++ {
		err = m.item(elem)
	}
	return err
}

// tuple adds an array of n items that holds the fields of a struct.
func (m *meter) tuple(c *cost, n int64) (err error) {
	for i := int64(0); i < n && err == nil; i++ {
		switch {
		case c.vague:
			err = m.vaguely(c)
		case i < int64(len(c.order)):
			err = m.field(c.order[i])
		default:
			err = m.item(nil)
		}
	}
	return err
}

func (m *meter) field(f field) error {
	if err := m.spend(f.made); err != nil {
		return err
	}
	return m.item(f.cost)
}

// pairs adds a map of n pairs.
func (m *meter) pairs(c *cost, kind costKind, n int64) (err error) {
	key, elem := (*cost)(nil), (*cost)(nil)
	switch kind {
	case anything:
		key, elem = c, c
		err = m.spend(64 + saturate(n, entry(16, 16)))
	case dict:
		key, elem = c.key, c.elem
		err = m.spend(64 + saturate(n, entry(key.size, elem.size)))
	case record:
		for i := int64(0); i < n && err == nil; i++ {
			err = m.named(c)
		}
		return err
	}
	for i := int64(0); i < n && err == nil; i++ {
		if err = m.item(key); err == nil {
			err = m.item(elem)
		}
	}
	return err
}

// entry returns what one pair of a Go map takes: tables have up to twice as many places as pairs,
// keys and values over 128 bytes are outside of the table, and both are made before they are put
// into it.
func entry(key, elem int64) int64 {
	return 2*(key+elem) + 3*(min(key, 128)+min(elem, 128)) + 48
}

// named adds a pair of a struct's map. If no field has the name, the decoder keeps the name as long
// as the map lasts and skips the value.
func (m *meter) named(c *cost) error {
	begin := m.off
	major, n := m.head()
	var f field
	switch major {
	case majorText:
		name := m.b[m.off : m.off+int(n)]
		m.off += int(n)
		f = c.names[string(name)]
	case 0:
		f = c.ints[int64(n)]
	case 1:
		f = c.ints[-1-int64(n)]
	default:
		m.off = begin
		if err := m.item(costOf(reflect.TypeFor[any]())); err != nil {
			return err
		}
	}
	if f.cost != nil && !f.vague {
		return m.field(f)
	}
	if err := m.spend(128 + int64(m.off-begin)); err != nil {
		return err
	}
	if f.cost == nil {
		return m.item(nil)
	}
	return m.vaguely(c)
}

// vaguely adds an item whose field is not known.
func (m *meter) vaguely(c *cost) error {
	begin, seen := m.off, m.seen
	if err := m.item(nil); err != nil {
		return err
	}
	return m.spend(int64(m.off-begin) + saturate(int64(m.seen-seen), c.perItem()))
}

// opaque adds an item that the type decodes by itself: each item in it is assumed to take as much
// as the type's size.
func (m *meter) opaque(c *cost, begin int, major byte, n uint64) (err error) {
	seen := m.seen
	switch major {
	case majorBytes, majorText:
		m.off += int(n)
	case majorArray:
		err = m.list(nil, scalar, int64(n))
	case majorMap:
		err = m.pairs(nil, scalar, int64(n))
	}
	if err == nil {
		err = m.spend(int64(m.off-begin) + 16)
	}
	if err == nil && c.kind == custom {
		err = m.spend(saturate(int64(m.seen-seen)+1, c.size+64))
	}
	return err
}

// saturate multiplies numbers that are not negative.
func saturate(a, b int64) int64 {
	if p := a * b; a == 0 || p/a == b && p >= 0 {
		return p
	}
	return 1 << 62
}
