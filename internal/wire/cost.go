package wire

import (
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// cost is what decoding into a type takes with the package cbor. nil is the cost of an item that is
// skipped.
type cost struct {
	t    reflect.Type
	kind costKind
	size int64 // of a value, without what it refers to

	elem, key *cost
	length    int64 // of an array

	names map[string]field // of a struct
	ints  map[int64]field  // the same, of its fields with the option keyasint
	order []field          // of one with the option toarray
	vague bool             // it is unclear which field an item of a list is for: some hide others, or are not known
	once  sync.Once
	worst int64 // of one item for any field: see perItem
}

type costKind int

const (
	scalar   costKind = iota // takes nothing beyond its place
	text                     // a string
	pointer                  // elem
	slice                    // of elem
	array                    // of elem
	dict                     // a map from key to elem
	record                   // a struct
	anything                 // an interface without methods
	raw                      // cbor.RawMessage, which keeps what is encoded
	custom                   // decodes itself
	moment                   // time.Time
	number                   // of math/big, which decodes itself from text in square time
)

// field is the cost of a struct's field, and the size of the embedded structs that are allocated
// when it is set.
type field struct {
	*cost
	made  int64
	vague bool // several have this name
}

var costs = struct {
	sync.Mutex
	of map[reflect.Type]*cost
}{of: map[reflect.Type]*cost{}}

var (
	unmarshaler = reflect.TypeFor[cbor.Unmarshaler]()
	bigPackage  = reflect.TypeFor[big.Int]().PkgPath()
)

func costOf(t reflect.Type) *cost {
	costs.Lock()
	defer costs.Unlock()
	return makeCost(t)
}

// makeCost must be called with the lock held. A type may contain itself.
func makeCost(t reflect.Type) *cost {
	if c := costs.of[t]; c != nil {
		return c
	}
	c := &cost{t: t, size: int64(t.Size())}
	costs.of[t] = c
	switch pointed := reflect.PointerTo(t); {
	case t.Kind() == reflect.Pointer: // decided by what it points to
	case t == reflect.TypeFor[time.Time]():
		c.kind = moment
		return c
	case t == reflect.TypeFor[cbor.RawMessage]():
		c.kind = raw
		return c
	case t == reflect.TypeFor[cbor.Tag]():
		c.kind = anything
		return c
	case t.PkgPath() == bigPackage:
		c.kind = number
		return c
	case t.Kind() != reflect.Interface && pointed.Implements(unmarshaler):
		c.kind = custom
		return c
	}
	switch t.Kind() {
	case reflect.String:
		c.kind = text
	case reflect.Pointer:
		c.kind, c.elem = pointer, makeCost(t.Elem())
	case reflect.Slice:
		c.kind, c.elem = slice, makeCost(t.Elem())
	case reflect.Array:
		c.kind, c.elem, c.length = array, makeCost(t.Elem()), int64(t.Len())
	case reflect.Map:
		c.kind, c.key, c.elem = dict, makeCost(t.Key()), makeCost(t.Elem())
	case reflect.Struct:
		c.kind, c.names, c.ints = record, map[string]field{}, map[int64]field{}
		c.collect(t, 0, map[reflect.Type]bool{t: true})
	case reflect.Interface:
		if t.NumMethod() == 0 {
			c.kind = anything
		}
	}
	return c
}

// collect adds the fields of a struct and of the structs embedded in it, by the rules of package
// cbor for their names.
func (c *cost) collect(t reflect.Type, made int64, seen map[reflect.Type]bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		ft, own := f.Type, made
		for ; ft.Kind() == reflect.Pointer; ft = ft.Elem() {
			own += int64(ft.Elem().Size())
		}
		tag := f.Tag.Get("cbor")
		if tag == "" {
			tag = f.Tag.Get("json")
		}
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case !f.IsExported() && !(f.Anonymous && ft.Kind() == reflect.Struct), tag == "-":
		case f.Anonymous && ft.Kind() == reflect.Struct && name == "":
			if seen[ft] {
				c.vague = true
				continue
			}
			seen[ft] = true
			c.collect(ft, own, seen)
		default:
			if name == "" {
				name = f.Name
			}
			c.add(name, strings.Contains(","+options+",", ",keyasint,"), field{cost: makeCost(f.Type), made: made})
		}
	}
}

// add adds a field. If two have one name, the decoder uses one or none.
func (c *cost) add(name string, asInt bool, f field) {
	c.order = append(c.order, f)
	if !asInt {
		f.vague = c.names[name].cost != nil
		c.names[name], c.vague = f, c.vague || f.vague
		return
	}
	n, err := strconv.Atoi(name)
	f.vague = c.ints[int64(n)].cost != nil
	c.ints[int64(n)], c.vague = f, c.vague || f.vague || err != nil
}

// perItem returns the least that any one item costs within a value of the type.
func (c *cost) perItem() int64 {
	c.once.Do(func() {
		seen := map[*cost]bool{}
		var visit func(*cost)
		visit = func(r *cost) {
			if r == nil || seen[r] {
				return
			}
			seen[r] = true
			c.worst += r.size + 64
			visit(r.elem)
			visit(r.key)
			for _, f := range r.order {
				c.worst += f.made
				visit(f.cost)
			}
		}
		visit(c)
		c.worst *= 4
	})
	return c.worst
}
