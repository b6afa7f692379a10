package gateway

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// first judges what a client says first, for the name that it shows: the server name of TLS
// (RFC 6066, section 3), or the host of HTTP/1 (RFC 9112, section 3.2). Bytes can be passed on as
// soon as they were added: what lacks its end is of no use to a server, and that end is not passed
// on if the name is another. So nobody waits for anything.
type first struct {
	name   string // the one that was asked for
	judged bool
	size   int    // of all
	rest   []byte // the line or record's head that is not whole
	isTLS  bool
	inHead bool   // of HTTP, after its first line
	isHost bool   // the line before was a Host field
	left   int    // of the record
	hello  []byte // what records had
}

const (
	// maxFirst bounds what is looked at, and kept, of a connection. A hello with a large key of
	// TLS 1.3 has 2 KiB, and web servers take heads of 8 to 64 KiB.
	maxFirst  = 32 << 10
	maxMethod = 255
)

// add looks at more bytes. The error says that they must not be passed on.
func (f *first) add(b []byte) (err error) {
	for len(b) > 0 && !f.judged && err == nil {
		n := 0
		switch {
		case f.isTLS:
			n, err = f.record(b)
		case f.size == 0 && mayBeTLS(b[0]):
			n, f.rest = 1, []byte{b[0]}
		case f.size == 1 && len(f.rest) == 1 && mayBeTLS(f.rest[0]) && b[0] == 3:
			f.isTLS = true
		default:
			n, err = f.line(b)
		}
		f.size += n
		b = b[n:]
		if f.size > maxFirst && !f.judged && err == nil {
			err = &refusal{fmt.Sprintf("the TLS hello or HTTP head has no end within %d KiB", maxFirst>>10)}
		}
	}
	if f.judged = f.judged || err != nil; f.judged {
		f.rest, f.hello = nil, nil
	}
	return err
}

// end is add for a client that sends no more: what lacks but its end counts as if it were whole.
func (f *first) end() error {
	if f.isTLS {
		return nil
	}
	return f.add([]byte("\r\n\r\n"))
}

func (f *first) compare(shown string) error {
	if shown != "" && canonical(shown) != f.name {
		return &refusal{"the TLS server name or HTTP host is " + printable(shown) + ", and not the name that was asked for"}
	}
	return nil
}

// printable is for what may end up in somebody's log.
func printable(s string) string { return strconv.QuoteToASCII(s[:min(len(s), 255)]) }

// mayBeTLS reports whether a record of TLS may begin so, of any type: some servers take alerts
// before the hello.
func mayBeTLS(b byte) bool { return b >= 20 && b <= 24 }

var errHello = &refusal{"what begins as TLS has no hello that can be read, and so none whose server name can be compared"}

const (
	recordHandshake = 22
	recordHead      = 5
	clientHello     = 1
	helloHead       = 4
	maxRecord       = 1 << 14
)

// record looks at bytes of one record of a ClientHello, which may be in several, and returns how
// many it was: RFC 8446, sections 5.1 and 4.1.2.
func (f *first) record(b []byte) (n int, err error) {
	if f.left == 0 {
		n = min(recordHead-len(f.rest), len(b))
		if f.rest = append(f.rest, b[:n]...); len(f.rest) < recordHead {
			return n, nil
		}
		f.left = int(binary.BigEndian.Uint16(f.rest[3:]))
		if f.rest[0] != recordHandshake || f.rest[1] != 3 || f.left == 0 || f.left > maxRecord {
			return n, errHello
		}
		f.rest = f.rest[:0]
		return n, nil
	}
	n = min(f.left, len(b))
	f.left -= n
	f.hello = append(f.hello, b[:n]...)
	if len(f.hello) < helloHead {
		return n, nil
	}
	size := int(binary.BigEndian.Uint32(f.hello) & 0xffffff)
	if f.hello[0] != clientHello || size > maxFirst {
		return n, errHello
	}
	if len(f.hello) < helloHead+size {
		return n, nil
	}
	f.judged = true
	names, err := namesOfHello(f.hello[helloHead:][:size])
	for _, name := range names {
		if err == nil {
			err = f.compare(name)
		}
	}
	return n, err
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

// line looks at bytes of one line, and returns how many it was. It is as lenient as the most
// lenient server.
func (f *first) line(b []byte) (n int, err error) {
	n = bytes.IndexByte(b, '\n') + 1
	if n == 0 {
		f.rest = append(f.rest, b...)
		f.judged = len(f.rest) > maxFirst && !f.inHead && (!mayBeRequest(f.rest) || slices.ContainsFunc(f.rest, isControl))
		return len(b), nil
	}
	line := bytes.TrimSuffix(append(f.rest, b[:n-1]...), []byte("\r"))
	f.rest = f.rest[:0]
	switch {
	case f.inHead:
		f.judged = len(line) == 0
		return n, f.field(string(line))
	case len(line) == 0: // before a request
		return n, nil
	case !mayBeRequest(line) || !bytes.Contains(bytes.ToUpper(line), []byte("HTTP/")):
		f.judged = true
		return n, nil
	}
	f.inHead = true
	return n, f.compare(hostOfTarget(string(bytes.Fields(line)[1])))
}

// mayBeRequest reports whether a line, or what is there of it, begins with a method and a target.
func mayBeRequest(line []byte) bool {
	line = bytes.TrimLeft(line, "\r")
	method := slices.IndexFunc(line, func(c byte) bool { return !isToken(c) })
	return method > 0 && method <= maxMethod && isSpace(line[method]) && len(bytes.Fields(line)) > 1
}

// field looks at a line of the head.
func (f *first) field(line string) error {
	name, value, _ := strings.Cut(line, ":")
	if f.isHost && line != "" && isSpace(line[0]) { // the line before goes on
		return f.compare("..." + line)
	}
	if f.isHost = strings.EqualFold(strings.TrimSpace(name), "Host"); f.isHost {
		return f.compare(withoutPort(strings.TrimSpace(value)))
	}
	return nil
}

func isToken(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

func isControl(c byte) bool { return c < ' ' && !isSpace(c) }

func isSpace(c byte) bool { return bytes.IndexByte([]byte(" \t\v\f\r"), c) >= 0 }

// hostOfTarget returns the host of a target with a scheme, or of one that is host and port.
func hostOfTarget(target string) string {
	if target[0] == '/' || target == "*" {
		return ""
	}
	if _, rest, ok := strings.Cut(target, "://"); ok {
		target = rest
	}
	if i := strings.IndexAny(target, "/?#"); i >= 0 {
		target = target[:i]
	}
	return withoutPort(target[strings.LastIndexByte(target, '@')+1:])
}

func withoutPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.Trim(host[i+1:], "0123456789") != "" {
		return host
	}
	return host[:i]
}
