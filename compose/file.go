package compose

// Compose files as trees of nodes, which know their lines: what compose-go returns does not.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v4"
)

// file is a Compose file.
type file struct {
	path    string
	content []byte // for compose-go
	root    *yaml.Node
	raw     map[string]any
	values  int                  // how many it has
	extends map[string]reference // what its services extend, by their names
}

// readFile reads a regular file of the user's.
func readFile(path string) ([]byte, error) { return readRegular(path, os.Stat, os.OpenFile) }

// readRegular reads a regular file. It does not open anything else that it can tell apart, as that
// alone has a device do something, and does not wait for one that is put there meanwhile.
func readRegular(path string, stat func(string) (fs.FileInfo, error), open func(string, int, fs.FileMode) (*os.File, error)) ([]byte, error) {
	regular := func(info fs.FileInfo, err error) error {
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is no regular file", path)
		}
		return err
	}
	if err := regular(stat(path)); err != nil {
		return nil, err
	}
	f, err := open(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := regular(f.Stat()); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return b, err
}

// parse parses a file's content, within the budget.
func parse(path string, content []byte, b *budget) (*file, error) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: the file is empty", path)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: the file has more than one document", path)
	}
	f := &file{path: path, root: &doc}
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		f.root = resolved(doc.Content[0])
	}
	if f.root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: no Compose file: it must begin with a field, such as services", path)
	}
	left := maxNodes
	if err := b.walk(&doc, &left, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.values = maxNodes - left
	if err := doc.Decode(&f.raw); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.raw, _ = plain(f.raw).(map[string]any)
	// compose-go would write a warning about it to the standard error.
	f.content = withoutField(content, f.root, "version")
	return f, nil
}

// plain returns what YAML was decoded to with maps of strings alone: a key with a tag makes another
// one. Keys that are no strings are left out, as compose-go refuses them.
func plain(of any) any {
	switch v := of.(type) {
	case map[string]any:
		for name, inside := range v {
			v[name] = plain(inside)
		}
	case []any:
		for i, inside := range v {
			v[i] = plain(inside)
		}
	case map[any]any:
		all := map[string]any{}
		for key, inside := range v {
			if name, ok := key.(string); ok {
				all[name] = plain(inside)
			}
		}
		return all
	}
	return of
}

// entry returns what the file says of an entry of a kind, such as a service of "services".
func (f *file) entry(kind, name string) map[string]any {
	entries, _ := f.raw[kind].(map[string]any)
	e, _ := entries[name].(map[string]any)
	return e
}

// resolved returns what an alias stands for.
func resolved(n *yaml.Node) *yaml.Node {
	for depth := 0; n.Kind == yaml.AliasNode && n.Alias != nil && depth < 100; depth++ {
		n = n.Alias
	}
	return n
}

// pair is a field and its value.
type pair struct{ key, value *yaml.Node }

// pairs returns the fields of a mapping, those that it merges ("<<") included. left bounds how many
// are looked at.
func pairs(n *yaml.Node, left *int) (all []pair) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if *left--; *left < 0 {
			return all
		}
		key, value := n.Content[i], n.Content[i+1]
		if key.Value != "<<" || key.Style != 0 {
			all = append(all, pair{key, resolved(value)})
			continue
		}
		merged := []*yaml.Node{value}
		if value = resolved(value); value.Kind == yaml.SequenceNode {
			merged = value.Content
		}
		for _, m := range merged {
			if m = resolved(m); m.Kind == yaml.MappingNode && m != n {
				all = append(all, pairs(m, left)...)
			}
		}
	}
	return all
}

// line returns the line of the field with that path, or of the innermost one above it that is
// there, and how many names of the path it has.
func (f *file) line(path []string) (line, found int) {
	n, left := f.root, maxNodes
	line = n.Line
	for _, name := range path {
		var next *yaml.Node
		if i, err := strconv.Atoi(name); err == nil && n.Kind == yaml.SequenceNode && i < len(n.Content) {
			next = resolved(n.Content[i])
			line = n.Content[i].Line
		} else if n.Kind == yaml.MappingNode {
			for _, p := range pairs(n, &left) {
				if p.key.Value == name {
					next, line = p.value, p.key.Line
					break // what is merged comes after what replaces it
				}
			}
		}
		if next == nil {
			return line, found
		}
		n, found = next, found+1
	}
	return line, found
}

// position returns where a field is: in the last of the files that have it.
func position(files []*file, path []string) (name string, line int) {
	best := -1
	for _, f := range files {
		if l, found := f.line(path); found >= best {
			name, line, best = f.path, l, found
		}
	}
	return name, line
}

// dotted returns a path as people write it: "services.web.ports[0]".
func dotted(path []string) string {
	var b strings.Builder
	for i, name := range path {
		switch _, err := strconv.Atoi(name); {
		case err == nil && (i > 1 || path[0] == "include"):
			b.WriteString("[" + name + "]")
		case i > 0:
			b.WriteString("." + name)
		default:
			b.WriteString(name)
		}
	}
	return b.String()
}
