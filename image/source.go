//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// source is an image that was found. Only its manifest and its configuration have been read, and
// their digests are right.
type source struct {
	digest v1.Hash
	config *v1.ConfigFile
	layers []v1.Layer // the lowest first
	// plain reports that layers have no digest of their own, only one of their content: in an
	// archive of docker save.
	plain bool
	from  interface{ close() }
}

func (s *source) close() { s.from.close() }

// transports are what other tools have before the path of a layout or an archive.
var transports = []string{"oci", "oci-archive", "docker-archive"}

// find reads as much of an image as it takes to know its parts.
func find(ctx context.Context, ref string, o *options) (*source, error) {
	var s *source
	var err error
	if strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../") {
		s, err = fromPath(ctx, ref, o)
	} else if scheme, name, has := strings.Cut(ref, "://"); has {
		err = fmt.Errorf("an image's name has no %s:// before it: write %s", scheme, name)
	} else {
		s, err = pull(ctx, ref, o)
		if transport, path, has := strings.Cut(ref, ":"); err != nil && has && slices.Contains(transports, transport) {
			err = fmt.Errorf("%w: for the layout or archive at %q write that, and ./ before it if it is not absolute", err, path)
		}
		if file, _, _, statErr := split(ref); err != nil && statErr == nil {
			err = fmt.Errorf("%w: for the file %q write ./%s", err, file, ref)
		}
	}
	if err != nil {
		return nil, foreign{err}
	}
	return s, nil
}

// fromPath opens a layout or an archive. A part of the path after a colon may choose an image in
// it.
func fromPath(ctx context.Context, ref string, o *options) (*source, error) {
	file, tag, info, err := split(ref)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		dir, err := openDirectory(file)
		if err != nil {
			return nil, err
		}
		s, err := fromLayout(ctx, dir, tag, o)
		if errors.Is(err, errNoLayout) {
			err = fmt.Errorf("%w (a directory that is a root itself is no image: use sandbox.DirRootfs, or make an image of it by docker import or buildah)", err)
		}
		return closing(s, dir, err)
	case !info.Mode().IsRegular():
		return nil, errors.New("neither a directory nor a regular file")
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	a := &tarFiles{file: f}
	s, err := fromArchive(ctx, a, tag, o)
	return closing(s, a, err)
}

// closing gives a source what it is read from, or closes that if there is no source.
func closing(s *source, from interface{ close() }, err error) (*source, error) {
	if err != nil {
		from.close()
		return nil, err
	}
	s.from = from
	return s, nil
}

// split finds the longest path in ref that exists, because the path may contain colons, and so may
// what follows it: "./save.tar:debian:12".
func split(ref string) (file, tag string, info fs.FileInfo, err error) {
	info, err = os.Stat(ref)
	for i := len(ref); err != nil; {
		if i = strings.LastIndexByte(ref[:i], ':'); i < 0 {
			info, err = os.Stat(ref)
			return ref, "", info, err
		}
		if inner, innerErr := os.Stat(ref[:i]); innerErr == nil {
			return ref[:i], ref[i+1:], inner, nil
		}
	}
	return ref, "", info, nil
}

// fromArchive distinguishes archives of docker save, which have a manifest.json, from those of an
// OCI layout.
func fromArchive(ctx context.Context, a *tarFiles, tag string, o *options) (*source, error) {
	if err := a.index(ctx); err != nil {
		return nil, err
	}
	if _, ok := a.entries["manifest.json"]; ok {
		return fromDocker(ctx, a, tag, o)
	}
	s, err := fromLayout(ctx, a, tag, o)
	if errors.Is(err, errNoLayout) {
		err = fmt.Errorf("neither an archive of docker save nor of an OCI layout: %w", err)
	}
	return s, err
}

// describe reads an image's manifest and configuration and checks their digests. The digests of the
// layers' contents, which are in the configuration, are then right too.
func describe(ctx context.Context, from content, d v1.Descriptor, o *options) (*source, error) {
	raw, err := read(ctx, from, "the manifest", d)
	if err != nil {
		return nil, err
	}
	var manifest v1.Manifest
	if err := decode("the manifest", raw, &manifest); err != nil {
		return nil, err
	}
	if n := len(manifest.Layers); n > maxLayers {
		return nil, fmt.Errorf("the manifest has %d layers, at most %d are possible", n, maxLayers)
	}
	s := &source{digest: d.Digest}
	for i, l := range manifest.Layers {
		if err := checkLayer(l.Size, o); err != nil {
			return nil, fmt.Errorf("the manifest: layer %d: %w", i, err)
		}
		if err := checkHash(l.Digest); err != nil {
			return nil, fmt.Errorf("the manifest: layer %d: %w", i, err)
		}
		s.layers = append(s.layers, newLayer(l, func() (io.ReadCloser, error) { return from.open(ctx, l) }))
	}
	if raw, err = read(ctx, from, "the configuration", manifest.Config); err != nil {
		return nil, err
	}
	return s, s.configure(raw)
}

// checkLayer refuses a layer that must exceed WithLimits, because compression makes nothing much
// larger.
func checkLayer(size int64, o *options) error {
	if size <= 0 {
		return fmt.Errorf("%w: its size is %d bytes", errHostile, size)
	}
	if size-size/64-64<<10 > o.limits.bytes {
		return fmt.Errorf("%w: its size is %d bytes, more than %d bytes: raise WithLimits", errHostile, size, o.limits.bytes)
	}
	return nil
}

// configure sets the configuration of an image, which has a digest for the content of each layer.
func (s *source) configure(raw []byte) error {
	s.config = &v1.ConfigFile{}
	if err := decode("the configuration", raw, s.config); err != nil {
		return err
	}
	if kind := s.config.RootFS.Type; kind != "layers" {
		return fmt.Errorf("the configuration: its root file system is of type %q, not layers", kind)
	}
	if n := len(s.config.RootFS.DiffIDs); n == 0 || n != len(s.layers) {
		return fmt.Errorf("the configuration has %d layers, the manifest %d", n, len(s.layers))
	}
	for i, content := range s.config.RootFS.DiffIDs {
		if content.Algorithm != "sha256" { // the store's names are made of it
			return fmt.Errorf("the configuration: layer %d: its digest %q is none of sha256", i, content)
		}
	}
	return nil
}

// layerOf is a layer as its source has it.
type layerOf struct {
	v1.Descriptor
	open func() (io.ReadCloser, error)
}

// newLayer returns a complete v1.Layer made from a layerOf.
func newLayer(d v1.Descriptor, open func() (io.ReadCloser, error)) v1.Layer {
	l, _ := partial.CompressedToLayer(&layerOf{d, open}) // never fails for a layerOf
	return l
}

func (l *layerOf) Digest() (v1.Hash, error)            { return l.Descriptor.Digest, nil }
func (l *layerOf) Size() (int64, error)                { return l.Descriptor.Size, nil }
func (l *layerOf) MediaType() (types.MediaType, error) { return l.Descriptor.MediaType, nil }

func (l *layerOf) Compressed() (io.ReadCloser, error) {
	r, err := l.open()
	if err != nil {
		return nil, foreign{err}
	}
	return r, nil
}
