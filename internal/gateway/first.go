package gateway

import (
	"bytes"
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
	size   int    // of all, of TLS since the last hello
	start  int    // where the client's own words begin
	rest   []byte // the line or record's head that is not whole

	inHead bool // of HTTP, after its first line
	isHTTP bool // and no other protocol with such a line
	isHost bool // the line before was a Host field

	isTLS   bool
	strange bool   // it may be another protocol yet
	greeted bool   // there was a hello
	early   bool   // there was data of the application
	skip    int    // of the record
	left    int    // of the record, of a hello
	hello   []byte // what records had
}

// maxFirst bounds what is looked at, and kept, of a connection. A hello with a large key of TLS 1.3
// has 2 KiB, web servers take heads of 8 to 64 KiB, and early data of 16 KiB.
const maxFirst = 32 << 10

// add looks at more bytes. The error says that they must not be passed on.
func (f *first) add(b []byte) (err error) {
	for len(b) > 0 && !f.judged && err == nil {
		n := 0
		switch {
		case f.isTLS:
			n, err = f.record(b)
		case f.size == f.start && mayBeTLS(b[0]):
			n, f.rest = 1, append(f.rest, b[0])
		case f.size == f.start+1 && len(f.rest) == 1 && (mayBeTLS(f.rest[0]) && b[0] == tlsMajor || mayBeginTLS(f.rest[0]) && b[0] < maxMajor):
			f.isTLS, f.strange = true, b[0] != tlsMajor
			continue
		default:
			n, err = f.line(b)
		}
		f.size += n
		b = b[n:]
		if f.size > maxFirst && !f.judged && err == nil {
			if f.judged = !f.mayShow(); !f.judged {
				err = &refusal{fmt.Sprintf("the TLS hello or HTTP head has no end within %d KiB", maxFirst>>10)}
			}
		}
	}
	if f.judged = f.judged || err != nil; f.judged {
		f.rest, f.hello = nil, nil
	}
	return err
}

// mayShow reports whether what has no end yet may show a name.
func (f *first) mayShow() bool {
	switch {
	case f.isTLS:
		return !f.early || len(f.hello) > 0
	case f.inHead:
		return f.isHTTP
	}
	return mayBecomeRequest(f.rest)
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

// line looks at bytes of one line, and returns how many it was. It is as lenient as the most
// lenient server.
func (f *first) line(b []byte) (n int, err error) {
	n = bytes.IndexByte(b, '\n') + 1
	if n == 0 {
		f.rest = append(f.rest, b...)
		return len(b), nil
	}
	line := bytes.TrimSuffix(append(f.rest, b[:n-1]...), []byte("\r"))
	f.rest = f.rest[:0]
	if f.inHead {
		f.judged = len(line) == 0
		return n, f.headLine(line)
	}
	return n, f.firstLine(line, f.size+n)
}

// firstLine looks at a line before the head, which ends at a number of bytes.
func (f *first) firstLine(line []byte, end int) error {
	w := words(line)
	switch {
	case len(w) == 0: // before a request
		return nil
	case end == proxyHead && string(line) == "\x00":
		return &refusal{"the PROXY protocol's version 2 hides the name that follows"}
	case !mayBeRequest(w):
		f.judged = true
		return nil
	}
	upper := bytes.ToUpper(line)
	hasVersion := bytes.Contains(upper, []byte("HTTP/"))
	if !hasVersion && isProxyLine(w) {
		f.start = end
		return nil
	}
	f.inHead = true
	target := string(w[1])
	hasScheme := hasPrefix(target, "http://") || hasPrefix(target, "https://")
	f.isHTTP = hasVersion || hasScheme || target[0] == '/' || bytes.Contains(upper, []byte("RTSP/")) || bytes.Contains(upper, []byte("ICE/"))
	if hasVersion || hasScheme {
		if err := f.compare(hostOfTarget(target)); err != nil {
			return err
		}
	}
	return f.headLine(line)
}

func hasPrefix(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// words takes a line apart.
func words(line []byte) [][]byte {
	plain := bytes.Clone(line)
	for i, c := range plain {
		if isSpace(c) {
			plain[i] = ' '
		}
	}
	return bytes.Fields(plain)
}

// proxyHead is the size of what the PROXY protocol's version 2 begins with, to the end of its third
// line, which is a zero: haproxy's proxy-protocol.txt, section 2.2.
const proxyHead = len("\r\n\r\n\x00\r\n")

// isProxyLine reports whether a line is of the PROXY protocol's version 1, after which the client's
// own words begin: section 2.1 there.
func isProxyLine(words [][]byte) bool {
	return string(words[0]) == "PROXY" && slices.Contains([]string{"TCP4", "TCP6", "UNKNOWN"}, string(words[1]))
}

// mayBeRequest reports whether a line begins with a method and a target.
func mayBeRequest(words [][]byte) bool { return len(words) > 1 && isMethod(words[0]) }

// mayBecomeRequest reports whether what is there of a line may. Binary protocols have control
// characters, and no method.
func mayBecomeRequest(line []byte) bool {
	w := words(line)
	return len(w) == 0 || isMethod(w[0]) && (len(w) == 1 || slices.ContainsFunc(w[0], isLetter) || !slices.ContainsFunc(line, isControl))
}

func isMethod(word []byte) bool {
	return !slices.ContainsFunc(word, func(c byte) bool { return !isToken(c) })
}

// headLine looks at a line of the head, which for some servers is several.
func (f *first) headLine(line []byte) error {
	for part := range strings.FieldsFuncSeq(string(line), func(r rune) bool { return r == '\r' || r == '\v' || r == '\f' }) {
		if err := f.field(part); err != nil {
			return err
		}
	}
	return nil
}

// field looks at a field of the head.
func (f *first) field(line string) error {
	if strings.TrimSpace(line) == "" {
		return nil
	}
	name, value, _ := strings.Cut(line, ":")
	if f.isHost && isSpace(line[0]) { // the line before goes on
		return f.compare("..." + line)
	}
	if f.isHost = strings.EqualFold(strings.TrimSpace(name), "Host"); f.isHost {
		return f.compare(withoutPort(strings.TrimSpace(value)))
	}
	return nil
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

func isToken(c byte) bool {
	return isLetter(c) || '0' <= c && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

func isControl(c byte) bool { return c < ' ' && !isSpace(c) }

// isSpace reports whether something may be between words: Python's str.split takes the most.
func isSpace(c byte) bool {
	return bytes.IndexByte([]byte(" \t\v\f\r\x1c\x1d\x1e\x1f\x85\xa0"), c) >= 0
}

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
