package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// What a value may be made of: an answer comes from a process that may have been taken over, and what a few bytes
// announce must not take more memory than a few bytes.
const (
	MaxDepth    = 32
	MaxElements = 1 << 17 // of one array or map
)

// Strings are whatever bytes Go's may be.
var encMode, decMode = modes()

func modes() (cbor.EncMode, cbor.DecMode) {
	enc, encErr := cbor.EncOptions{Time: cbor.TimeRFC3339Nano, TextMarshaler: cbor.TextMarshalerTextString}.EncMode()
	dec, decErr := cbor.DecOptions{MaxNestedLevels: MaxDepth, MaxArrayElements: MaxElements, MaxMapPairs: MaxElements, IndefLength: cbor.IndefLengthForbidden,
		DupMapKey: cbor.DupMapKeyEnforcedAPF, UTF8: cbor.UTF8DecodeInvalid, TextUnmarshaler: cbor.TextUnmarshalerTextString}.DecMode()
	if err := errors.Join(encErr, decErr); err != nil {
		panic(err)
	}
	return enc, dec
}

// Envelope comes before the value in the body of a Call or Answer.
type Envelope struct {
	Fields []int `cbor:",omitempty"` // those of the struct whose files came along, in the order of the files
	Until  int64 `cbor:",omitempty"` // of a Call: its deadline, in nanoseconds since 1970, 0 if there is none
}

// Trouble is the body of a Failure, Panicked or Streamed.
type Trouble struct {
	Text  string
	Stack string `cbor:",omitempty"`
	// TooLarge says that the answer was.
	TooLarge bool `cbor:",omitempty"`
	// Late says that the error is that of the call's deadline.
	Late bool `cbor:",omitempty"`
}

// MaxText is how much there is of an error's text, or a stack.
const MaxText = 64 << 10

// Marshal encodes a body.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal decodes one.
func Unmarshal(b []byte, v any) error { return decMode.Unmarshal(b, v) }

var (
	readerType = reflect.TypeFor[io.Reader]()
	fileType   = reflect.TypeFor[*os.File]()
)

// Shape is what of the values of a type travels beside their encoding: the exported fields of the struct, or of the one that it
// points to, that are an io.Reader or an *os.File.
type Shape struct {
	readers, files map[int]bool
}

// ShapeOf returns a type's shape.
func ShapeOf(t reflect.Type) Shape {
	s := Shape{map[int]bool{}, map[int]bool{}}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return s
	}
	for i := range t.NumField() {
		switch f := t.Field(i); {
		case !f.IsExported():
		case f.Type == readerType:
			s.readers[i] = true
		case f.Type == fileType:
			s.files[i] = true
		}
	}
	return s
}

// Files is how many files values of the shape may have.
func (s Shape) Files() int { return len(s.readers) + len(s.files) }

// Stream is a field that is read at one end and arrives as the reading end of a pipe at the other.
type Stream struct {
	From io.Reader
	To   *os.File
}

// Pack encodes a value. The message has the files of the value, which stay the caller's, and the reading ends of the streams, which
// are the caller's to close, in the same way as the writing ends.
func Pack[T any](s Shape, v T, e Envelope) (b []byte, files []*os.File, streams []Stream, ends []*os.File, err error) {
	rv := reflect.ValueOf(&v).Elem()
	if s.Files() > 0 && (rv.Kind() != reflect.Pointer || !rv.IsNil()) {
		holder := rv
		if rv.Kind() == reflect.Pointer { // the caller's struct stays as it is
			copied := reflect.New(rv.Type().Elem())
			copied.Elem().Set(rv.Elem())
			rv.Set(copied)
			holder = copied.Elem()
		}
		for i := range holder.NumField() {
			if !s.readers[i] && !s.files[i] || holder.Field(i).IsNil() {
				continue
			}
			f, isFile := holder.Field(i).Interface().(*os.File)
			if !s.files[i] {
				isFile = false
			}
			if !isFile {
				r, w, err := os.Pipe()
				if err != nil {
					return nil, nil, streams, ends, err
				}
				streams = append(streams, Stream{holder.Field(i).Interface().(io.Reader), w})
				ends = append(ends, r)
				f = r
			}
			files, e.Fields = append(files, f), append(e.Fields, i)
			holder.Field(i).SetZero()
		}
	}
	var body bytes.Buffer
	enc := encMode.NewEncoder(&body)
	if err = errors.Join(enc.Encode(e), enc.Encode(v)); err != nil {
		err = fmt.Errorf("encoding a %v: %w", reflect.TypeFor[T](), err)
	}
	return body.Bytes(), files, streams, ends, err
}

// Unpack decodes a value. The message's files then belong to it, unless there is an error. Its streams are what wrap makes of the files that came for them.
func Unpack[T any](s Shape, m Message, wrap func(*os.File) io.Reader) (v T, e Envelope, err error) {
	rest, err := decMode.UnmarshalFirst(m.Body, &e)
	if err == nil {
		err = Unmarshal(rest, &v)
	}
	if err == nil && len(e.Fields) != len(m.Files) { // none, then, where the type has none
		err = fmt.Errorf("%d files for %d fields", len(m.Files), len(e.Fields))
	}
	if err != nil {
		return v, e, fmt.Errorf("decoding a %v: %w", reflect.TypeFor[T](), err)
	}
	if s.Files() == 0 {
		return v, e, nil
	}
	holder := reflect.ValueOf(&v).Elem()
	if holder.Kind() == reflect.Pointer && !holder.IsNil() {
		holder = holder.Elem()
	}
	if holder.Kind() == reflect.Struct { // what was decoded into them has no file
		for i := range holder.NumField() {
			if s.readers[i] || s.files[i] {
				holder.Field(i).SetZero()
			}
		}
	}
	last := -1
	for n, i := range e.Fields {
		if holder.Kind() != reflect.Struct || i <= last || !s.readers[i] && !s.files[i] {
			return v, e, fmt.Errorf("decoding a %v: a file for a field that takes none", reflect.TypeFor[T]())
		}
		last = i
		if s.files[i] {
			holder.Field(i).Set(reflect.ValueOf(m.Files[n]))
		} else {
			holder.Field(i).Set(reflect.ValueOf(wrap(m.Files[n])))
		}
	}
	return v, e, nil
}
