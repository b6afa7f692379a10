//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// files are the files of a layout, in a directory or an archive.
type files interface {
	// open returns a regular file and its size in bytes.
	open(name string) (io.ReadCloser, int64, error)
	close()
}

// directory reads the files of a directory, whose author may not be trusted: no link leads out of
// it, no pipe is waited for, no device is read.
type directory struct{ dir *os.File }

func openDirectory(dir string) (directory, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	return directory{f}, err
}

func (d directory) close() { _ = d.dir.Close() } // it was read only

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	fail := func(err error) (io.ReadCloser, int64, error) {
		return nil, 0, &fs.PathError{Op: "open", Path: path.Join(d.dir.Name(), name), Err: err}
	}
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	var fd int
	err := error(unix.EAGAIN)
	for tries := 0; tries < 100 && (err == unix.EAGAIN || err == unix.EINTR); tries++ { // openat2(2): any rename elsewhere may cause EAGAIN
		fd, err = unix.Openat2(int(d.dir.Fd()), name, how)
	}
	switch err {
	case nil:
	case unix.EXDEV:
		return fail(fmt.Errorf("%w: a link out of the layout", errHostile))
	default:
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), path.Join(d.dir.Name(), name))
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: no regular file", errHostile)
	}
	if err != nil {
		_ = f.Close()
		return fail(err)
	}
	return f, info.Size(), nil
}

// layoutContent is the content of an OCI layout: blobs are named by their digests.
type layoutContent struct{ files }

func (l layoutContent) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, size, err := l.files.open(path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex))
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		_ = f.Close()
		err := fmt.Errorf("%s has %d bytes, not %d", d.Digest, size, d.Size)
		if size < d.Size {
			err = fmt.Errorf("%w: %w", err, io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	return exactly(ctx, f, size), nil
}

var errNoLayout = errors.New("no OCI layout")

// fromLayout returns the image that the tag and the platform choose.
func fromLayout(ctx context.Context, f files, tag string, o *options) (*source, error) {
	raw, err := readFile(ctx, f, "index.json")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoLayout, err)
	}
	var index v1.IndexManifest
	if err := decode("index.json", raw, &index); err != nil {
		return nil, err
	}
	found := index.Manifests
	if tag != "" {
		if found = best(index.Manifests, tag, called); len(found) == 0 {
			return nil, noImage(tag, index.Manifests, called)
		}
	}
	if found, err = fits(found, o.wanted); err != nil {
		return nil, err
	}
	for _, d := range found[1:] {
		if d.Digest != found[0].Digest {
			return nil, several(found, called)
		}
	}
	return resolve(ctx, layoutContent{f}, found[0], o)
}

func readFile(ctx context.Context, f files, name string) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxManifest {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than %d", errHostile, name, size, maxManifest)
	}
	return readAll(exactly(ctx, r, size), size)
}

// called returns the names of an image in a layout. containerd and Docker write a full name into
// the first annotation, podman and skopeo a tag or a full name into the second.
func called(d v1.Descriptor) (names []string) {
	for _, key := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} {
		if n := d.Annotations[key]; n != "" {
			names = append(names, n)
		}
	}
	return append(names, d.Digest.String())
}

// best returns the images that want names: by one of their full names, otherwise by the same name
// with Docker's defaults in it ("debian" is "docker.io/library/debian:latest"), otherwise by the
// tag alone.
func best[T any](all []T, want string, names func(T) []string) []T {
	full := func(s string) string {
		t, err := name.NewTag(s)
		if err != nil {
			return ""
		}
		return t.Name()
	}
	wanted := full(want)
	for _, same := range []func(have string) bool{
		func(have string) bool { return have == want },
		func(have string) bool { return wanted != "" && full(have) == wanted },
		func(have string) bool { return strings.HasSuffix(have, ":"+want) },
	} {
		var found []T
		for _, one := range all {
			if slices.ContainsFunc(names(one), same) {
				found = append(found, one)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// fits returns the images for a platform, or if there are none those that do not say their
// platform.
func fits(all []v1.Descriptor, platform v1.Platform) ([]v1.Descriptor, error) {
	var right, unknown []v1.Descriptor
	var others []v1.Descriptor
	for _, d := range all {
		switch {
		case d.Platform == nil:
			unknown = append(unknown, d)
		case normal(*d.Platform).Satisfies(platform):
			right = append(right, d)
		default:
			others = append(others, d)
		}
	}
	switch {
	case len(right) > 0:
		// amd64/v3 is also for amd64, but needs a newer processor.
		same := slices.DeleteFunc(slices.Clone(right), func(d v1.Descriptor) bool { return normal(*d.Platform).Variant != platform.Variant })
		if len(same) > 0 {
			return same, nil
		}
		return right, nil
	case len(unknown) > 0:
		return unknown, nil
	case len(others) > 0:
		return nil, fmt.Errorf("there is no image for %s: there is %s", platform, listed(others, func(d v1.Descriptor) []string { return []string{d.Platform.String()} }))
	}
	return nil, fmt.Errorf("there is no image for %s", platform)
}

// resolve follows indexes from d to the image for the platform, and reads its manifest and
// configuration.
func resolve(ctx context.Context, from content, d v1.Descriptor, o *options) (*source, error) {
	for range maxIndexes {
		switch {
		case d.MediaType.IsImage():
			return describe(ctx, from, d, o)
		case !d.MediaType.IsIndex():
			return nil, fmt.Errorf("the manifest: its media type is %q, which is no image's", d.MediaType)
		}
		raw, err := read(ctx, from, "the index", d)
		if err != nil {
			return nil, err
		}
		var index v1.IndexManifest
		if err := decode("the index", raw, &index); err != nil {
			return nil, err
		}
		found, err := fits(index.Manifests, o.wanted)
		if err != nil {
			return nil, err
		}
		d = found[0]
	}
	return nil, errors.New("too many indexes within each other")
}
