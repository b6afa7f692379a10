package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
)

// bundle is files: those of a task's inputs, or of a result's outputs. A list of them that is long
// is a blob.
type bundle struct {
	Inline *bundleRecord `cbor:"1,keyasint,omitempty"`
	Sum    []byte        `cbor:"2,keyasint,omitempty"`
	Size   int64         `cbor:"3,keyasint,omitempty"`
}

type bundleRecord struct {
	Version int     `cbor:"0,keyasint"`
	Entries []entry `cbor:"1,keyasint"`
}

// entry is a regular file, whose content is here or a blob, a directory, or a symbolic link.
type entry struct {
	Name     string      `cbor:"1,keyasint"`
	Mode     fs.FileMode `cbor:"2,keyasint"` // type and permission bits
	Size     int64       `cbor:"3,keyasint,omitempty"`
	Modified int64       `cbor:"4,keyasint,omitempty"` // ns since 1970
	Data     []byte      `cbor:"5,keyasint,omitempty"`
	Sum      []byte      `cbor:"6,keyasint,omitempty"`
	Link     string      `cbor:"7,keyasint,omitempty"`
}

const (
	maxFiles       = 10_000
	maxName        = 4095 // bytes: PATH_MAX, with its end
	maxBundleBytes = 1 << 30
	inlineFile     = 4 << 10
	inlineBundle   = 64 << 10 // of files' contents, and of the whole list
)

// packer puts files into a bundle.
type packer struct {
	ctx     context.Context
	q       *Queue
	now     func() (time.Time, error)
	fsys    fs.FS
	list    bundleRecord
	seen    map[string]bool
	total   int64
	inline  int
	lenient bool // leave out what can't be packed, and say so in missing
	missing []string
}

// pack stores the files at names. If it is lenient, what is not there or can't be stored is left
// out and named.
func (q *Queue) pack(ctx context.Context, fsys fs.FS, names []string, lenient bool) (b *bundle, missing []string, err error) {
	p := &packer{ctx: ctx, q: q, now: q.nowOnce(ctx), fsys: fsys, list: bundleRecord{Version: version}, seen: map[string]bool{}, lenient: lenient}
	for _, name := range names {
		if err := fs.WalkDir(fsys, name, p.visit); err != nil {
			return nil, nil, err
		}
	}
	data, err := encode(&p.list)
	if err != nil {
		return nil, nil, err
	}
	if len(data) <= 2*inlineBundle {
		return &bundle{Inline: &p.list}, p.missing, nil
	}
	if len(data) > maxBundle {
		return nil, nil, fmt.Errorf("%w: the names of the files are %d bytes, more than %d", errTooLarge, len(data), maxBundle)
	}
	sum, size, err := q.putBytes(ctx, p.now, data)
	return &bundle{Sum: sum, Size: size}, p.missing, err
}

func (p *packer) visit(name string, d fs.DirEntry, err error) error {
	if err == nil && !p.seen[name] {
		p.seen[name] = true
		err = p.add(name, d)
	}
	var left *fs.PathError
	if err != nil && p.lenient && (errors.As(err, &left) || errors.Is(err, errLeftOut)) {
		if len(p.missing) < maxOutputs { // as the run named it
			p.missing = append(p.missing, strings.ToValidUTF8(name[:min(len(name), maxName)], "\ufffd"))
		}
		if d != nil && d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	return err
}

// errTooLarge is the error of files that are more than a bundle may have.
var errTooLarge = errors.New("too large")

// errLeftOut is the error of a file that a bundle can't have.
var errLeftOut = errors.New("only regular files, directories, and symbolic links that do not lead out can be sent")

func (p *packer) add(name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	e := entry{Name: name, Mode: info.Mode() & (fs.ModeType | fs.ModePerm), Modified: info.ModTime().UnixNano()}
	if !validName(name) && name != "." {
		return fmt.Errorf("%q: a name that can't be: %w", name, errLeftOut)
	}
	switch e.Mode.Type() {
	case 0:
		if err := p.content(&e, info.Size()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	case fs.ModeDir:
		if name == "." {
			return nil
		}
	case fs.ModeSymlink:
		if e.Link, err = fs.ReadLink(p.fsys, name); err != nil {
			return err
		}
		if len(e.Link) > maxName || !e.leadsInside() {
			return fmt.Errorf("%s: a link to %q: %w", name, e.Link, errLeftOut)
		}
	default:
		return fmt.Errorf("%s: %v: %w", name, e.Mode, errLeftOut)
	}
	if len(p.list.Entries) == maxFiles {
		return fmt.Errorf("%w: more than %d files: put them into an archive", errTooLarge, maxFiles)
	}
	p.list.Entries = append(p.list.Entries, e)
	return nil
}

// content stores a file's content, of which said says how long it is: it may lie.
func (p *packer) content(e *entry, said int64) error {
	left := maxBundleBytes - p.total
	if said > left {
		return fmt.Errorf("%w: it has %d bytes, more than the %d that are left of %d", errTooLarge, said, left, int64(maxBundleBytes))
	}
	f, err := p.fsys.Open(e.Name)
	if err != nil {
		return err
	}
	head, err := io.ReadAll(io.LimitReader(f, inlineFile+1))
	f.Close()
	if err != nil {
		return err
	}
	if e.Size = int64(len(head)); e.Size <= inlineFile && p.inline+len(head) <= inlineBundle {
		p.inline += len(head)
		e.Data = head
	} else if e.Sum, e.Size, err = p.q.putBlob(p.ctx, p.now, e.Name, left, func() (io.ReadCloser, error) { return p.fsys.Open(e.Name) }); err != nil {
		return err
	}
	if p.total += e.Size; p.total > maxBundleBytes {
		return fmt.Errorf("%w: with those before it, it is more than %d bytes", errTooLarge, int64(maxBundleBytes))
	}
	return nil
}

// validName reports whether a file of a bundle may have the name.
func validName(name string) bool { return fs.ValidPath(name) && name != "." && len(name) <= maxName }

// leadsInside reports whether a link leads to a name in its bundle. After a name in it there is no
// "..", which leads somewhere else if that name is a link too.
func (e *entry) leadsInside() bool {
	down := false
	for part := range strings.SplitSeq(e.Link, "/") {
		if part == ".." && down {
			return false
		}
		down = down || part != ".." && part != "." && part != ""
	}
	return e.Link != "" && !path.IsAbs(e.Link) && fs.ValidPath(path.Join(path.Dir(e.Name), e.Link))
}

// check reports what is wrong with an entry, whoever wrote it.
func (e *entry) check() error {
	ok := validName(e.Name) && e.Mode&^(fs.ModeType|fs.ModePerm) == 0
	switch e.Mode.Type() {
	case 0:
		ok = ok && e.Size >= 0 && (e.Sum == nil && int64(len(e.Data)) == e.Size || len(e.Sum) == 32 && e.Data == nil)
	case fs.ModeDir:
	case fs.ModeSymlink:
		ok = ok && len(e.Link) <= maxName && e.leadsInside()
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("files: %q can't be", e.Name)
	}
	return nil
}

// unpack returns the files of a bundle, whoever wrote it. Their contents are read from the queue,
// as long as ctx lasts, when they are read.
func (q *Queue) unpack(ctx context.Context, b *bundle) (fs.FS, error) {
	list := b.Inline
	if list == nil {
		if b.Size < 0 || b.Size > maxBundle || len(b.Sum) != 32 {
			return nil, errors.New("files: the list can't be")
		}
		data, err := io.ReadAll(q.openBlob(ctx, "", b.Sum, b.Size))
		if err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
		if list, err = decode[bundleRecord](data); err != nil {
			return nil, fmt.Errorf("files: %w", err)
		}
	}
	if len(list.Entries) > maxFiles {
		return nil, fmt.Errorf("files: more than %d", maxFiles)
	}
	f := &bundleFS{ctx: ctx, q: q, nodes: map[string]*node{".": {entry: entry{Name: ".", Mode: fs.ModeDir | 0o755}}}}
	total := int64(0)
	for i := range list.Entries {
		e := &list.Entries[i]
		if err := e.check(); err != nil {
			return nil, err
		}
		if total += e.Size; e.Size > maxBundleBytes || total > maxBundleBytes {
			return nil, fmt.Errorf("files: more than %d bytes", maxBundleBytes)
		}
		if err := f.add(e); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// add adds an entry, and the directories above it that the list does not have.
func (f *bundleFS) add(e *entry) error {
	if n := f.nodes[e.Name]; n != nil {
		if n.IsDir() && e.Mode.IsDir() && n.implied {
			n.entry, n.implied = *e, false
			return nil
		}
		return fmt.Errorf("files: %q twice", e.Name)
	}
	f.nodes[e.Name] = &node{entry: *e}
	for name := e.Name; ; {
		dir := path.Dir(name)
		up := f.nodes[dir]
		if up != nil && !up.IsDir() {
			return fmt.Errorf("files: %q is in no directory", name)
		}
		made := up == nil
		if made {
			if len(f.nodes) > 2*maxFiles {
				return errors.New("files: too many directories")
			}
			up = &node{entry: entry{Name: dir, Mode: fs.ModeDir | 0o755}, implied: true}
			f.nodes[dir] = up
		}
		up.children = append(up.children, path.Base(name))
		if !made {
			return nil
		}
		name = dir
	}
}

func (n *node) Name() string       { return path.Base(n.entry.Name) }
func (n *node) Size() int64        { return n.entry.Size }
func (n *node) Mode() fs.FileMode  { return n.entry.Mode }
func (n *node) ModTime() time.Time { return time.Unix(0, n.entry.Modified) }
func (n *node) IsDir() bool        { return n.entry.Mode.IsDir() }
func (n *node) Sys() any           { return nil }
