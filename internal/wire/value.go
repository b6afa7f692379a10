package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// Bounds of a value: an answer comes from a process that may have been taken over, and what a few
// bytes announce must not take much memory.
const (
	MaxDepth    = 32
	MaxElements = 1 << 17 // of one array or map
)

// Strings may hold any bytes, as Go's may.
var encMode, decMode = modes()

func modes() (cbor.EncMode, cbor.DecMode) {
	enc, encErr := cbor.EncOptions{Time: cbor.TimeRFC3339Nano, TextMarshaler: cbor.TextMarshalerTextString}.EncMode()
	dec, decErr := cbor.DecOptions{MaxNestedLevels: MaxDepth, MaxArrayElements: MaxElements, MaxMapPairs: MaxElements, IndefLength: cbor.IndefLengthForbidden,
		DupMapKey: cbor.DupMapKeyEnforcedAPF, FieldNameMatching: cbor.FieldNameMatchingCaseSensitive, UTF8: cbor.UTF8DecodeInvalid, TextUnmarshaler: cbor.TextUnmarshalerTextString}.DecMode()
	if err := errors.Join(encErr, decErr); err != nil {
		panic(err)
	}
	return enc, dec
}

// Envelope comes before the value in the body of a Call or Answer.
type Envelope struct {
	Fields []int `cbor:",omitempty"` // the struct's fields to which the message's files belong, in order
	Until  int64 `cbor:",omitempty"` // of a Call: its deadline, in nanoseconds since 1970, or 0
}

// Trouble is the body of a Failure, Panicked or Streamed.
type Trouble struct {
	Text  string
	Stack string `cbor:",omitempty"`
	// TooLarge reports that the answer was too large.
	TooLarge bool `cbor:",omitempty"`
	// Late reports that the error is that of the call's deadline.
	Late bool `cbor:",omitempty"`
}

const (
	// MaxText bounds an error's text, or a stack.
	MaxText = 64 << 10
	// maxTrouble bounds an encoded Trouble.
	maxTrouble = 2*MaxText + 1024
)

// Marshal encodes a body.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal decodes a body.
func Unmarshal(b []byte, v any) error { return decMode.Unmarshal(b, v) }

var (
	readerType = reflect.TypeFor[io.Reader]()
	fileType   = reflect.TypeFor[*os.File]()
)

// Shape says which fields of a type's values are sent beside their encoding: the exported fields of
// the struct, or of the one that it points to, that are an io.Reader or an *os.File.
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

// Passable returns why no value of a type could be passed, nil if some can.
func Passable(t reflect.Type) error {
	switch {
	case t == fileType, t == readerType:
		return fmt.Errorf("it is an %v itself: let it be a struct with a field of that type", t)
	case t.Kind() == reflect.Interface && t.NumMethod() > 0:
		return fmt.Errorf("%v is an interface with methods: let it be a type without, such as a string", t)
	case t.Kind() == reflect.Chan, t.Kind() == reflect.Func, t.Kind() == reflect.UnsafePointer:
		return fmt.Errorf("a %v can't be copied to another process", t)
	}
	return nil
}

// Files returns how many files values of the shape may have.
func (s Shape) Files() int { return len(s.readers) + len(s.files) }

// Streams returns how many streams values of the shape may have.
func (s Shape) Streams() int { return len(s.readers) }

// holder returns the struct that has a value's streams and files, or an invalid value.
func (s Shape) holder(v reflect.Value) reflect.Value {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || s.Files() == 0 {
		return reflect.Value{}
	}
	return v
}

// Stream is a field that is read at one end of a connection and arrives at the other as the reading
// end of a pipe.
type Stream struct {
	From io.Reader
	To   *os.File
}

// take removes the streams and files from a value, in the order of the fields. If the value is a
// pointer, what it points to does not change.
func (s Shape) take(v reflect.Value, use func(field int, from any) error) error {
	if !s.holder(v).IsValid() {
		return nil
	}
	if v.Kind() == reflect.Pointer {
		copied := reflect.New(v.Type().Elem())
		copied.Elem().Set(v.Elem())
		v.Set(copied)
	}
	holder := s.holder(v)
	for i := range holder.NumField() {
		if !s.readers[i] && !s.files[i] || holder.Field(i).IsNil() {
			continue
		}
		if err := use(i, holder.Field(i).Interface()); err != nil {
			return err
		}
		holder.Field(i).SetZero()
	}
	return nil
}

// Pack encodes the value of a call. files are the value's files, which stay the caller's, and the
// reading ends of the streams. The caller closes ends, which are these reading ends, and the
// writing ends in streams.
func Pack[T any](s Shape, v T, e Envelope) (b []byte, files []*os.File, streams []Stream, ends []*os.File, err error) {
	err = s.take(reflect.ValueOf(&v).Elem(), func(i int, from any) error {
		f, isFile := from.(*os.File)
		if !isFile || !s.files[i] {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			f, streams, ends = r, append(streams, Stream{from.(io.Reader), w}), append(ends, r)
		}
		files, e.Fields = append(files, f), append(e.Fields, i)
		return nil
	})
	if err == nil {
		b, err = encode(e, v)
	}
	return b, files, streams, ends, err
}

// PackAnswer encodes the value of an answer. Only the fields of its streams are sent: the host
// makes a pipe for each when it has the answer, in their order.
func PackAnswer[T any](s Shape, v T) (b []byte, files []*os.File, streams []io.Reader, err error) {
	var e Envelope
	_ = s.take(reflect.ValueOf(&v).Elem(), func(i int, from any) error {
		if s.files[i] {
			files = append(files, from.(*os.File))
		} else {
			streams = append(streams, from.(io.Reader))
		}
		e.Fields = append(e.Fields, i)
		return nil
	})
	b, err = encode(e, v)
	return b, files, streams, err
}

func encode[T any](e Envelope, v T) ([]byte, error) {
	var body bytes.Buffer
	enc := encMode.NewEncoder(&body)
	if err := errors.Join(enc.Encode(e), enc.Encode(v)); err != nil {
		return nil, fmt.Errorf("encoding a %v: %w", reflect.TypeFor[T](), err)
	}
	return body.Bytes(), nil
}

// Unpack decodes the value of a call. The message's files then belong to the value, unless there is
// an error. Its streams are what wrap makes of the files that came for them.
func Unpack[T any](s Shape, m Message, wrap func(*os.File) io.Reader) (v T, e Envelope, err error) {
	rest, err := decMode.UnmarshalFirst(m.Body, &e)
	if err == nil {
		err = Unmarshal(rest, &v)
	}
	if err == nil && len(e.Fields) != len(m.Files) { // so none if the type has none
		err = fmt.Errorf("%d files for %d fields", len(m.Files), len(e.Fields))
	}
	if err == nil {
		var files, streams []*os.File
		for n, i := range e.Fields {
			if s.readers[i] {
				streams = append(streams, m.Files[n])
			} else {
				files = append(files, m.Files[n])
			}
		}
		err = s.put(reflect.ValueOf(&v).Elem(), e.Fields, files, func() (io.Reader, error) {
			r := wrap(streams[0])
			streams = streams[1:]
			return r, nil
		})
	}
	if err != nil {
		err = fmt.Errorf("decoding a %v: %w", reflect.TypeFor[T](), err)
	}
	return v, e, err
}

// UnpackAnswer decodes the value of an answer. Its streams are what stream makes for each. The
// message's files then belong to the value, unless there is an error. limit is that of messages:
// decoding takes no more than it allows, and ends with ctx.
func UnpackAnswer[T any](ctx context.Context, s Shape, m Message, limit int64, stream func() (io.Reader, error)) (v T, err error) {
	v, e, err := decode[T](ctx, m.Body, budgetFor(limit))
	for _, f := range m.Files {
		if err == nil {
			err = checkFile(f)
		}
	}
	if err == nil {
		err = s.put(reflect.ValueOf(&v).Elem(), e.Fields, m.Files, stream)
	}
	if err != nil {
		err = fmt.Errorf("decoding a %v: %w", reflect.TypeFor[T](), err)
	}
	return v, err
}

// maxEnvelope is far more than decoding the envelope of MaxFiles files takes.
const maxEnvelope = 64 << 10

// decode decodes an answer's body. If ctx ends first, decode returns without waiting for the
// decoder, which has little left to do.
func decode[T any](ctx context.Context, body []byte, budget int64) (v T, e Envelope, err error) {
	type result struct {
		v   T
		e   Envelope
		err error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil { // in a type that decodes itself
				r.err = fmt.Errorf("panic: %v", p)
			}
			done <- r
		}()
		var envelope cbor.RawMessage
		var value []byte
		if value, r.err = decMode.UnmarshalFirst(body, &envelope); r.err != nil {
			return
		}
		if r.err = within(ctx, envelope, reflect.TypeFor[Envelope](), maxEnvelope); r.err == nil {
			r.err = Unmarshal(envelope, &r.e)
		}
		if r.err == nil {
			r.err = decMode.Wellformed(value)
		}
		if r.err == nil {
			r.err = within(ctx, value, reflect.TypeFor[T](), budget)
		}
		if r.err == nil {
			r.err = Unmarshal(value, &r.v)
		}
	}()
	select {
	case r := <-done:
		return r.v, r.e, r.err
	case <-ctx.Done():
		return v, e, ctx.Err()
	}
}

// put sets a value's streams, which stream makes, and its files.
func (s Shape) put(v reflect.Value, fields []int, files []*os.File, stream func() (io.Reader, error)) error {
	holder := s.holder(v)
	if holder.IsValid() { // the decoded fields have no files
		for i := range holder.NumField() {
			if s.readers[i] || s.files[i] {
				holder.Field(i).SetZero()
			}
		}
	}
	last := -1
	for _, i := range fields {
		if !holder.IsValid() || i <= last || !s.readers[i] && !s.files[i] {
			return errors.New("a file for a field that takes none")
		}
		last = i
		if s.files[i] {
			if len(files) == 0 {
				return errors.New("no file for a field that takes one")
			}
			holder.Field(i).Set(reflect.ValueOf(files[0]))
			files = files[1:]
			continue
		}
		r, err := stream()
		if err != nil {
			return err
		}
		holder.Field(i).Set(reflect.ValueOf(r))
	}
	if len(files) > 0 {
		return fmt.Errorf("%d files for no field", len(files))
	}
	return nil
}
