package compose

// What a Compose file, and what it names, may become while it is read: small files can say things
// that are larger than any memory, by aliases, variables, extends and ranges of ports.

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v4"
)

const (
	maxFile    = 1 << 20  // bytes of a Compose file, or of one that it names
	maxTotal   = 64 << 20 // bytes of all that is read, and of what it becomes
	maxNodes   = 100_000  // values of a Compose file, what aliases stand for counted each time
	maxDepth   = 200      // of values in values
	maxFields  = 5_000    // of one value, as package yaml compares each with all
	maxReplace = 1 << 26  // bytes that are gone through for variables: a second or two
	bytesAPort = 512      // that one of a range takes, more or less
	bytesAName = 64       // that a variable takes of a map, besides its value

	bytesADollar = 64 // that are gone through in the time that a variable takes, or an escape
)

// budget is what is left for a project while it is read.
type budget struct {
	bytes   int
	replace int // bytes that are gone through for variables
	values  int // of files that are referred to, and of their models
}

func newBudget() *budget { return &budget{maxTotal, maxReplace, maxNodes} }

// take takes n bytes.
func (b *budget) take(n int) error {
	if b.bytes -= n; b.bytes < 0 {
		return fmt.Errorf("the files, and what aliases and variables make of them, have more than %d MiB: make them smaller", maxTotal>>20)
	}
	return nil
}

// takeValues takes n values of a file that is referred to, or of its model.
func (b *budget) takeValues(n int) error {
	if b.values -= n; b.values < 0 {
		return fmt.Errorf("the files that are referred to, and what they refer to, have more than %d values: use fewer", maxNodes)
	}
	return nil
}

// walk takes what a node has. An alias has what it stands for, each time.
func (b *budget) walk(n *yaml.Node, nodes *int, depth int) error {
	if *nodes--; *nodes < 0 {
		return fmt.Errorf("line %d: with what aliases stand for, the file has more than %d values: use fewer", n.Line, maxNodes)
	}
	if depth > maxDepth {
		return fmt.Errorf("line %d: more than %d values in one another", n.Line, maxDepth)
	}
	if n.Kind == yaml.MappingNode && len(n.Content) > 2*maxFields {
		return fmt.Errorf("line %d: more than %d fields in one place: use fewer", n.Line, maxFields)
	}
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return b.walk(n.Alias, nodes, depth+1)
	}
	if err := b.take(len(n.Value)); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	for _, inside := range n.Content {
		if err := b.walk(inside, nodes, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// replaceable refuses text in which it takes long to replace variables, or escapes of them: for
// each in braces, compose-go goes through the rest of its line. It returns how many a line has at
// most, for bounded: compose-go copies what it has of a value for each that is before.
func (b *budget) replaceable(text string) (most int, err error) {
	for line := range strings.Lines(text) {
		// An escape of .env files may be a brace.
		braces := strings.Count(line, "{") + strings.Count(line, `\0`)
		if b.replace -= braces*len(line) + bytesADollar*strings.Count(line, "$"); b.replace < 0 {
			return 0, errLongLines
		}
		most = max(most, braces)
	}
	return most, nil
}

var errLongLines = errors.New("there are too many variables, or too many on long lines: use fewer, or break the lines")

// substitute replaces variables in text.
func (b *budget) substitute(text string, value template.Mapping) (string, error) {
	braces, err := b.replaceable(text)
	if err != nil {
		return "", err
	}
	var full error
	replaced, err := template.Substitute(text, b.bounded(value, braces, &full))
	if full != nil {
		return "", full
	}
	return replaced, err
}

// bounded returns a mapping that takes what values have, each of which is copied so many times,
// sixteen bytes in the time that one is gone through. When nothing is left, they are empty, and
// full is set.
func (b *budget) bounded(value template.Mapping, copies int, full *error) template.Mapping {
	return func(name string) (string, bool) {
		v, given := value(name)
		err := b.take(len(v))
		if b.replace -= copies * len(v) / 16; err == nil && b.replace < 0 {
			err = errLongLines
		}
		if err != nil {
			*full = err
			return "", true
		}
		return v, given
	}
}

// variables parses a file of them, each of which may refer to known ones, of the first map that has
// it, and to those before it. dotenv would replace those in one go, however much they become, so it
// gets one at a time.
func (b *budget) variables(content []byte, known ...map[string]string) (map[string]string, error) {
	text := string(bytes.TrimPrefix(content, []byte("\uFEFF"))) + "\n"
	braces, err := b.replaceable(text)
	if err != nil {
		return nil, err
	}
	vars := map[string]string{}
	var full error
	value := b.bounded(func(name string) (string, bool) {
		for _, m := range append(slices.Clip(known), vars) {
			if v, given := m[name]; given {
				return v, true
			}
		}
		return "", false
	}, braces, &full)
	for begin, end := 0, 0; begin < len(text); begin = end {
		end = begin + firstVariable(text[begin:])
		one, err := dotenv.UnmarshalWithLookup(text[begin:end], dotenv.LookupFn(value))
		if full != nil {
			return nil, full
		}
		if err != nil { // whose line counts from begin
			_, err = dotenv.UnmarshalWithLookup(strings.Repeat("\n", strings.Count(text[:begin], "\n"))+text[begin:end], dotenv.LookupFn(value))
			return nil, err
		}
		for k, v := range one {
			vars[k] = v
		}
	}
	return vars, nil
}

// firstVariable returns how many bytes of the text are up to the end of its first variable, or of a
// comment: as dotenv has it, name=value, name: value or a name alone, and the value in quotes or up
// to the end of the line.
func firstVariable(text string) int {
	rest := strings.TrimLeftFunc(text, unicode.IsSpace)
	if strings.HasPrefix(rest, "#") {
		return len(text) - len(rest) + untilLine(rest)
	}
	end := strings.IndexAny(rest, "=:\n")
	if end < 0 {
		return len(text)
	}
	alone := rest[end] == '\n'
	rest = rest[end+1:]
	if alone {
		return len(text) - len(rest)
	}
	rest = strings.TrimLeft(rest, "\t\v\f\r \u0085\u00a0") // no other space: dotenv's isSpace
	if rest == "" || rest[0] != '"' && rest[0] != '\'' {
		return len(text) - len(rest) + untilLine(rest)
	}
	escaped := false
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c != rest[0]:
			escaped = !escaped && c == '\\'
		case escaped:
			escaped = false
		default:
			return len(text) - len(rest) + i + 1
		}
	}
	return len(text)
}

// untilLine returns how many bytes the first line has.
func untilLine(text string) int {
	if end := strings.IndexByte(text, '\n'); end >= 0 {
		return end + 1
	}
	return len(text)
}

// portRange takes what compose-go makes of a range of ports.
func (b *budget) portRange(value string) (any, error) { return value, b.take(portBytes(value)) }

// portBytes returns how much compose-go makes of a range of ports: a port each.
func portBytes(value string) (n int) {
	ports, _, _ := strings.Cut(value, "/")
	for part := range strings.SplitSeq(ports, ":") {
		first, last, _ := strings.Cut(part, "-")
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 == nil && err2 == nil && to >= from { // else it is none, or wrong
			n += int(to-from+1) * bytesAPort
		}
	}
	return n
}

// size is how large something is that YAML was decoded to.
type size struct{ values, bytes int }

func (s *size) add(o size) {
	s.values, s.bytes = min(s.values+o.values, 2*maxNodes), min(s.bytes+o.bytes, 2*maxTotal)
}

// sizeOf returns the size of a value, with its variables and ranges of ports, for which it takes
// some of the budget.
func (l *loading) sizeOf(of any, ports bool, b *budget) (s size, err error) {
	s.values = 1
	add := func(inside any, ports bool) {
		var o size
		if err == nil {
			o, err = l.sizeOf(inside, ports, b)
			s.add(o)
		}
	}
	switch v := of.(type) {
	case map[string]any:
		for name, inside := range v {
			s.bytes += len(name)
			add(inside, name == "ports")
		}
	case []any:
		for _, inside := range v {
			add(inside, ports)
		}
	case string:
		v, err = b.substitute(v, l.lookUp)
		if s.bytes = len(v); ports {
			s.bytes += portBytes(v)
		}
	}
	return s, err
}

// checkExtended refuses services that have too much with those that they extend, of which each gets
// a copy.
func (l *loading) checkExtended() error {
	var sum size
	sizes := &sizes{l, newBudget(), map[string]size{}}
	for _, f := range l.files {
		services, _ := f.raw["services"].(map[string]any)
		for name := range services {
			n, err := sizes.of(name)
			if sum.add(n); err != nil {
				return fmt.Errorf("%s: services.%s: %w", f.path, name, err)
			}
			if sum.values > maxNodes {
				return fmt.Errorf("%s: with what they extend, services have more than %d values: use fewer", f.path, maxNodes)
			}
			if sum.bytes > maxTotal {
				return fmt.Errorf("%s: with what they extend, services have more than %d MiB: make them smaller", f.path, maxTotal>>20)
			}
		}
	}
	return nil
}

// sizes are those of services with what they extend, and with what is included under the same
// names.
type sizes struct {
	l      *loading
	budget *budget
	known  map[string]size
}

func (s *sizes) of(name string) (n size, err error) {
	if n, known := s.known[name]; known {
		return n, nil
	}
	s.known[name] = n // compose-go refuses those that extend themselves
	add := func(value any) {
		if err == nil {
			var more size
			more, err = s.l.sizeOf(value, false, s.budget)
			n.add(more)
		}
	}
	for _, model := range s.l.models.included {
		services, _ := model["services"].(map[string]any)
		add(services[name])
	}
	for _, f := range s.l.files {
		add(f.entry("services", name))
		switch base := f.extends[name]; {
		case err != nil:
			return n, err
		case base.path != "":
			add(s.l.models.extended[s.l.models.path(base.path)][base.service])
		case base.service != "":
			var more size
			more, err = s.of(base.service)
			n.add(more)
		}
	}
	s.known[name] = n
	return n, err
}

// withoutField renames a field of the file, version or include, to one of the same length that
// means nothing.
func withoutField(content []byte, root *yaml.Node, name string) []byte {
	other := "x-" + name[:len(name)-2]
	for i := 0; i < len(root.Content); i += 2 {
		key := root.Content[i]
		if key.Value != name {
			continue
		}
		lines := bytes.SplitAfterN(content, []byte("\n"), key.Line)
		if len(lines) < key.Line {
			break
		}
		at := len(content) - len(lines[key.Line-1])
		for range key.Column - 1 {
			_, size := utf8.DecodeRune(content[at:])
			at += size // at the end: 0
		}
		at += len(content[at:]) - len(bytes.TrimLeft(content[at:], `"'`))
		if bytes.HasPrefix(content[at:], []byte(name)) {
			return append(append(bytes.Clone(content[:at]), other...), content[at+len(name):]...)
		}
	}
	return content
}
