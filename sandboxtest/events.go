package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cellkit/sandbox"
)

// status is how a test ended.
type status string

const (
	passed  status = "PASS"
	failed  status = "FAIL"
	skipped status = "SKIP"
)

// result is the outcome of a test.
type result struct {
	name    string
	status  status // "" if it has not ended
	items   []item // in order
	problem string // of the sandbox, not of the test
}

// item is a piece of a test's output, a subtest or an attribute.
type item struct {
	text       []byte
	sub        *result
	key, value string
}

// parser parses what a test binary writes with -test.v=test2json: the output of tests, and lines
// about them that begin with a marker.
type parser struct {
	name    string // the isolated test
	results map[string]*result
	current *result // whose output follows, nil if it is not part of the isolated test
	pending []byte  // an incomplete line about tests
	inLine  bool
	rest    tail // output outside of the isolated test
	items   int  // in all results
}

const (
	marker  = 0x16
	maxLine = 64 << 10

	// Lines about tests are short, but what they add up to is not.
	maxItems = 1 << 18 // subtests, attributes and pieces of output
	maxName  = 4 << 10
	maxDepth = 100 // slashes in a name
)

// add adds an item to a result, unless there are too many.
func (p *parser) add(r *result, i item) {
	if p.items++; p.items <= maxItems {
		r.items = append(r.items, i)
	}
}

func newParser(name string) *parser { return &parser{name: name, results: map[string]*result{}} }

func (p *parser) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if !p.inLine {
			text, after, found := bytes.Cut(b, []byte{marker})
			p.output(text)
			b, p.inLine = after, found
			continue
		}
		line, after, found := bytes.Cut(b, []byte("\n"))
		p.pending = append(p.pending, line...)
		b = after
		if found || len(p.pending) > maxLine {
			p.line(string(p.pending))
			p.pending, p.inLine = p.pending[:0], false
		}
	}
	return n, nil
}

func (p *parser) output(text []byte) {
	if len(text) == 0 {
		return
	}
	if p.current == nil {
		_, _ = p.rest.Write(text)
		return
	}
	items := &p.current.items
	if n := len(*items); n > 0 && (*items)[n-1].text != nil {
		(*items)[n-1].text = append((*items)[n-1].text, text...)
	} else {
		p.add(p.current, item{text: bytes.Clone(text)})
	}
}

// line parses a line about a test.
func (p *parser) line(line string) {
	word, rest, _ := strings.Cut(line, " ")
	kind, about, _ := strings.Cut(rest, " ")
	about = strings.TrimLeft(about, " ")
	switch {
	case word == "===" && kind == "RUN":
		p.current = p.begin(about)
	case word == "===" && (kind == "CONT" || kind == "NAME"):
		p.current = p.results[about]
	case word == "===" && kind == "ATTR":
		name, attribute, _ := strings.Cut(about, " ")
		if r := p.results[name]; r != nil {
			key, value, _ := strings.Cut(attribute, " ")
			p.add(r, item{key: key, value: value})
		}
	case word == "---" && strings.HasSuffix(kind, ":"):
		if i := strings.LastIndex(about, " ("); i >= 0 {
			about = about[:i]
		}
		if r := p.results[about]; r != nil {
			r.status = status(strings.TrimSuffix(kind, ":"))
		}
		p.current = nil
	case word == "===" && kind == "PAUSE", line == "PASS", line == "FAIL":
	default:
		p.output([]byte(line + "\n"))
	}
}

// begin returns the result of a test that begins, or nil if that is not the isolated test or one
// below it.
func (p *parser) begin(name string) *result {
	if name != p.name && !strings.HasPrefix(name, p.name+"/") || p.results[name] != nil {
		return p.results[name]
	}
	if len(name) > maxName || strings.Count(name, "/") > maxDepth || p.items >= maxItems {
		p.items = maxItems + 1
		return nil
	}
	r := &result{name: name}
	p.results[name] = r
	// A name may contain slashes of its own, so the parent is the deepest test with a matching
	// name that has not ended.
	for above := name; above != p.name; {
		above = above[:strings.LastIndexByte(above, '/')]
		if up := p.results[above]; up != nil && (up.status == "" || above == p.name) {
			p.add(up, item{sub: r})
			break
		}
	}
	return r
}

// conclude returns the result of the test, given how its process ended.
func (p *parser) conclude(err error) *result {
	if p.inLine {
		p.output(p.pending)
	}
	r := p.results[p.name]
	var exit *sandbox.ExitError
	if r != nil && p.items <= maxItems && (err == nil && r.status != "" || r.status == failed && errors.As(err, &exit) && exit.ExitCode == 1) {
		return r
	}
	switch {
	case r == nil && err == nil:
		r = &result{problem: "the test did not run: the tests above it run there too, without the files, network and environment of this process, and one of them has returned, skipped or failed before"}
	case r == nil:
		r = &result{problem: fmt.Sprintf("the test did not run: %v", err)}
	case p.items > maxItems:
		r.problem = fmt.Sprintf("it reported more than %d subtests, attributes and pieces of output, or one whose name has more than %d bytes or %d levels", maxItems, maxName, maxDepth)
	case err == nil:
		r.problem = "its process ended in the middle of the test"
	case errors.Is(err, context.DeadlineExceeded):
		r.problem = fmt.Sprintf("its process, a moment before the test's deadline: %v", err)
	default:
		r.problem = fmt.Sprintf("its process: %v", err)
	}
	r.status = failed
	if text := p.rest.String(); text != "" {
		r.items = append(r.items, item{text: []byte(text)})
	}
	return r
}
