package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The description of an image is not to be trusted. These are the bounds of what is read of it,
// wherever it comes from; docs/IMAGES.md has the table.
const (
	maxManifest = 16 << 20 // bytes of an index, a manifest, a configuration, or the manifest.json of docker save
	maxValues   = 1 << 17  // objects, arrays, members and elements in one of these: small ones decode to many times their bytes
	maxLayers   = 64       // as many as sandbox.LayersRootfs takes
	maxIndexes  = 8        // indexes within each other
	maxListed   = 10       // images that an error names
	maxShown    = 80       // bytes of the name of one of these
	maxText     = 1 << 10  // bytes of an error's text that comes from elsewhere
	maxEntries  = 100_000  // of an archive
	maxName     = 1 << 10  // bytes of the name of an archive's entry
	maxLinks    = 8        // links from one entry of an archive to another
	maxAnswer   = 64 << 10 // bytes of any other answer of a registry, and of the headers of each
	maxHops     = 10       // redirects of one request
)

// errHostile is the error for archives that no honest tool makes.
var errHostile = errors.New("refused")

// content reads an image's parts from a registry, or from the files of a layout.
type content interface {
	// open returns the content of d. The reader ends with an error if that is larger than d
	// says, and when ctx ends.
	open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	close()
}

// read returns the content of d, which must have the size and the digest that d says.
func read(ctx context.Context, from content, what string, d v1.Descriptor) ([]byte, error) {
	if d.Size <= 0 || d.Size > maxManifest {
		return nil, fmt.Errorf("%w: the size of %s is %d bytes: it must be from 1 to %d", errHostile, what, d.Size, maxManifest)
	}
	if err := checkHash(d.Digest); err != nil {
		return nil, fmt.Errorf("the digest of %s: %w", what, err)
	}
	r, err := from.open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer r.Close()
	raw, err := readAll(r, d.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return raw, checkDigest(what, raw, d)
}

// readAll returns everything that r has, or an error if that is more than limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", errHostile, limit)
	}
	return raw, err
}

func checkDigest(what string, raw []byte, d v1.Descriptor) error {
	if int64(len(raw)) != d.Size {
		return fmt.Errorf("%s has %d bytes, not %d", what, len(raw), d.Size)
	}
	hash, err := v1.Hasher(d.Digest.Algorithm)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	hash.Write(raw)
	if got := fmt.Sprintf("%x", hash.Sum(nil)); got != d.Digest.Hex {
		return fmt.Errorf("%s has the digest %s:%s, not %s", what, d.Digest.Algorithm, got, d.Digest)
	}
	return nil
}

// checkHash refuses a missing digest. The decoder has already refused malformed ones.
func checkHash(h v1.Hash) error {
	_, err := v1.NewHash(h.String())
	return err
}

// decode does the same as json.Unmarshal, but only for a bounded number of values: an element of
// "[{},{},...]" takes 50 times its encoded bytes.
func decode(what string, raw []byte, to any) error {
	if n := countValues(raw); n > maxValues {
		return fmt.Errorf("%w: %s has more than %d values", errHostile, what, maxValues)
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// countValues returns the number of objects, arrays, members and elements in a JSON document, or
// more.
func countValues(raw []byte) (n int) {
	quoted := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case !quoted && (c == '{' || c == '[' || c == ','):
			n++
		}
	}
	return n
}

// exactly returns a reader of n bytes: fewer or more are an error. It also ends with ctx, which a
// file does not do by itself.
func exactly(ctx context.Context, r io.ReadCloser, n int64) io.ReadCloser {
	return &exactReader{ReadCloser: r, ctx: ctx, left: n, size: n}
}

type exactReader struct {
	io.ReadCloser
	ctx        context.Context
	left, size int64
}

func (e *exactReader) Read(b []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := e.ReadCloser.Read(b)
	switch e.left -= int64(n); {
	case e.left < 0:
		return 0, fmt.Errorf("%w: more than %d bytes", errHostile, e.size)
	case err == io.EOF && e.left > 0:
		return n, fmt.Errorf("%d bytes are missing: %w", e.left, io.ErrUnexpectedEOF)
	}
	return n, err
}

// foreign is an error whose text may come from elsewhere: its length is bounded, and it can safely
// be written to a terminal.
type foreign struct{ error }

func (f foreign) Unwrap() error { return f.error }

func (f foreign) Error() string {
	text := f.error.Error()
	if len(text) > maxText {
		text = text[:maxText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// noImage returns the error for an image that is not there, with those that are.
func noImage[T any](want string, all []T, called func(T) []string) error {
	if len(all) == 0 {
		return fmt.Errorf("there is no image %q, and no other", want)
	}
	return fmt.Errorf("there is no image %q: there is %s", want, listed(all, called))
}

// several returns the error for a choice between several images.
func several[T any](all []T, called func(T) []string) error {
	return fmt.Errorf("there are %d images: choose one with a tag: %s", len(all), listed(all, called))
}

// listed lists the first few, each by the first of its names.
func listed[T any](all []T, called func(T) []string) string {
	var b strings.Builder
	for i, one := range all {
		if i == maxListed {
			fmt.Fprintf(&b, " and %d more", len(all)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		n := called(one)[0]
		if len(n) > maxShown {
			n = n[:maxShown] + "..."
		}
		fmt.Fprintf(&b, "%q", n)
	}
	return b.String()
}
