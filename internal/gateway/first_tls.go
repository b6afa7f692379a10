package gateway

import (
	"bytes"
	"encoding/binary"
)

// mayBeTLS reports whether a record of TLS may begin so, of any type: some servers take alerts
// before the hello.
func mayBeTLS(b byte) bool { return b >= 20 && b <= 24 }

// mayBeginTLS reports whether it may begin so also with a version that no TLS has: Go's servers
// look at that of the first record only to know other protocols.
func mayBeginTLS(b byte) bool { return b == recordAlert || b == recordHandshake }

var errHello = &refusal{"what begins as TLS has no hello that can be read, and so none whose server name can be compared"}

const (
	recordChange    = 20
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
	recordHead      = 5
	tlsMajor        = 3
	maxMajor        = 16
	alertSize       = 2
	clientHello     = 1
	helloHead       = 4
	maxRecord       = 1 << 14
	maxCipherRecord = maxRecord + 2<<10
)

// record looks at bytes of one record, and returns how many it was: RFC 8446, sections 5.1 and
// 4.1.2. A ClientHello may be in several. After one, there may be another, if the server asks for
// it, and until then what servers skip: changes of cipher, alerts and early data.
func (f *first) record(b []byte) (n int, err error) {
	switch {
	case f.skip > 0:
		n = min(f.skip, len(b))
		f.skip -= n
	case f.left > 0:
		n = min(f.left, len(b))
		f.left -= n
		f.hello = append(f.hello, b[:n]...)
		err = f.hellos()
	default:
		n = min(recordHead-len(f.rest), len(b))
		if f.rest = append(f.rest, b[:n]...); len(f.rest) == recordHead {
			err = f.recordHead(f.rest[0], f.rest[1], int(binary.BigEndian.Uint16(f.rest[3:])))
			f.rest = f.rest[:0]
		}
	}
	return n, err
}

func (f *first) recordHead(kind, major byte, size int) error {
	between := f.greeted && len(f.hello) == 0
	switch {
	case kind == recordHandshake && major < maxMajor && 0 < size && size <= maxRecord:
		f.left = size
	case between && recordChange <= kind && kind <= recordData && size <= maxCipherRecord:
		f.skip, f.early = size, f.early || kind == recordData
	case between, f.strange && (kind != recordHandshake || size != 0) && (kind != recordAlert || size != alertSize):
		f.judged = true
	default:
		return errHello
	}
	return nil
}

// hellos compares the names of those that are whole.
func (f *first) hellos() error {
	for len(f.hello) > 0 {
		isHello := f.hello[0] == clientHello
		if f.strange {
			f.judged = !isHello || len(f.hello) > 1 && f.hello[1] > 1
			f.strange = len(f.hello) == 1
		}
		if f.judged = f.judged || f.greeted && !isHello; f.judged {
			return nil
		}
		if !isHello {
			return errHello
		}
		if len(f.hello) < helloHead {
			return nil
		}
		size := int(binary.BigEndian.Uint32(f.hello) & 0xffffff)
		if size > maxFirst {
			return errHello
		}
		if len(f.hello) < helloHead+size {
			return nil
		}
		names, err := namesOfHello(f.hello[helloHead:][:size])
		for _, name := range names {
			if err == nil {
				err = f.compare(name)
			}
		}
		if err != nil {
			return err
		}
		f.greeted, f.size, f.hello = true, 0, bytes.Clone(f.hello[helloHead+size:])
	}
	return nil
}

func namesOfHello(b []byte) (names []string, err error) {
	const version, random, sni, hostName = 2, 32, 0, 0
	h := fields{b, false}
	h.take(version + random)
	h.vector(1) // session
	h.vector(2) // ciphers
	h.vector(1) // compressions
	if len(h.rest) == 0 && !h.short {
		return nil, nil // without extensions
	}
	extensions := fields{h.vector(2), false}
	wrong := h.short || len(h.rest) > 0
	for len(extensions.rest) > 0 && !extensions.short {
		kind, data := extensions.number(2), fields{extensions.vector(2), false}
		if kind != sni {
			continue
		}
		list := fields{data.vector(2), false}
		wrong = wrong || data.short || len(data.rest) > 0
		for len(list.rest) > 0 && !list.short {
			kind, name := list.number(1), list.vector(2)
			wrong = wrong || kind != hostName
			names = append(names, string(name))
		}
		wrong = wrong || list.short
	}
	if wrong || extensions.short {
		return nil, errHello
	}
	return names, nil
}

// fields takes bytes apart.
type fields struct {
	rest  []byte
	short bool // something was missing
}

func (f *fields) take(n int) []byte {
	if n > len(f.rest) {
		f.short, f.rest = true, nil
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) number(size int) (n int) {
	for _, b := range f.take(size) {
		n = n<<8 | int(b)
	}
	return n
}

// vector takes what follows its length.
func (f *fields) vector(size int) []byte { return f.take(f.number(size)) }
