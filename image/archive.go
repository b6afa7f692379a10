//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// tarFiles are the files of a tar archive, which are read in place.
type tarFiles struct {
	file    *os.File
	entries map[string]entry
}

// entry is a regular file of an archive, or a link to another.
type entry struct {
	offset, size int64
	link         string // from the archive's root
}

// index finds out where the files are. Of several entries with the same name the last counts, as
// for tar.
func (a *tarFiles) index(ctx context.Context) error {
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("neither a directory nor a regular file")
	}
	a.entries = map[string]entry{}
	in := &seeker{ctx: ctx, SectionReader: io.NewSectionReader(a.file, 0, info.Size())}
	r := tar.NewReader(in)
	for n := 0; ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return a.noTar(err)
		}
		if n == maxEntries {
			return fmt.Errorf("%w: more than %d entries", errHostile, maxEntries)
		}
		at := path.Clean(strings.TrimLeft(h.Name, "/"))
		if len(at) > maxName || len(h.Linkname) > maxName {
			continue // no tool writes such a name
		}
		e := entry{size: h.Size}
		switch h.Typeflag {
		case tar.TypeReg:
			// A tar.Reader reads no further than the header, so the content follows
			// here. A sparse file's content does not.
			if e.offset, err = in.Seek(0, io.SeekCurrent); err != nil {
				return err
			}
			if isSparse(h) || e.size < 0 || e.size > info.Size()-e.offset {
				return fmt.Errorf("%w: %q: as a file it would be larger than itself", errHostile, at)
			}
		case tar.TypeSymlink:
			e.link = path.Join(path.Dir(at), h.Linkname)
		case tar.TypeLink:
			e.link = path.Clean(h.Linkname)
		case tar.TypeGNUSparse:
			return fmt.Errorf("%w: %q: as a file it would be larger than itself", errHostile, at)
		default:
			continue
		}
		a.entries[at] = e
	}
}

// noTar returns the error for a file that can't be read as an archive. It may be a compressed one.
func (a *tarFiles) noTar(err error) error {
	head := make([]byte, 6)
	_, _ = a.file.ReadAt(head, 0) // a shorter file is no archive either
	for magic, tool := range map[string]string{"\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd", "BZh": "bzip2", "\xfd7zXZ\x00": "xz"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return fmt.Errorf("it is compressed with %s: decompress it first", tool)
		}
	}
	return fmt.Errorf("neither a directory nor a tar archive: %w", err)
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// seeker is a file whose methods fail once ctx has ended. A tar.Reader seeks over what it does not
// read.
type seeker struct {
	*io.SectionReader
	ctx context.Context
}

func (s *seeker) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.SectionReader.Read(b)
}

func (a *tarFiles) close() { _ = a.file.Close() } // it was read only

func (a *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	at := path.Clean(name)
	for range maxLinks {
		e, ok := a.entries[at]
		if !ok {
			return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if e.link == "" {
			return io.NopCloser(io.NewSectionReader(a.file, e.offset, e.size)), e.size, nil
		}
		at = e.link
	}
	return nil, 0, fmt.Errorf("%w: %s: more than %d links", errHostile, name, maxLinks)
}

// saved is an image's entry in the manifest.json of docker save.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// fromDocker finds an image in an archive of docker save. It has no manifest with a digest; the
// digest of the configuration is Docker's own name for the image.
func fromDocker(ctx context.Context, a *tarFiles, tag string, o *options) (*source, error) {
	raw, err := readFile(ctx, a, "manifest.json")
	if err != nil {
		return nil, err
	}
	var found []saved
	if err := decode("manifest.json", raw, &found); err != nil {
		return nil, err
	}
	called := func(s saved) []string {
		id := strings.TrimSuffix(path.Base(s.Config), ".json")
		return append(slices.Clone(s.RepoTags), "sha256:"+id)
	}
	if tag != "" {
		all := found
		if found = best(all, tag, called); len(found) == 0 {
			return nil, noImage(tag, all, called)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("manifest.json names no image")
	}
	image := found[0]
	if slices.ContainsFunc(found, func(s saved) bool { return s.Config != image.Config }) {
		return nil, several(found, called)
	}
	if n := len(image.Layers); n > maxLayers {
		return nil, fmt.Errorf("manifest.json has %d layers, at most %d are possible", n, maxLayers)
	}
	if raw, err = readFile(ctx, a, image.Config); err != nil {
		return nil, fmt.Errorf("the configuration: %w", err)
	}
	s := &source{plain: true}
	if s.digest, _, err = v1.SHA256(bytes.NewReader(raw)); err != nil {
		return nil, err
	}
	for i, name := range image.Layers {
		f, size, err := a.open(name)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		_ = f.Close()
		if err := checkLayer(size, o); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		s.layers = append(s.layers, newLayer(v1.Descriptor{Size: size}, func() (io.ReadCloser, error) {
			f, size, err := a.open(name)
			if err != nil {
				return nil, err
			}
			return exactly(ctx, f, size), nil
		}))
	}
	return s, s.configure(raw)
}
