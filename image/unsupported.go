//go:build !linux

package image

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// On other systems than Linux everything compiles, but there is no store into which an image could
// be unpacked.

func unsupported() error {
	return fmt.Errorf("image: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Store is a directory in which layers are unpacked, on Linux.
type Store struct{}

// Layer is one layer of a store.
type Layer struct {
	Digest string
	Bytes  int64
	Files  int64
	Used   time.Time
}

type (
	source struct{ config *v1.ConfigFile }
	limits struct{ bytes, files int64 }
	info   struct {
		Opaque  bool
		LeftOut []string
	}
	layer struct{ info info }
)

// DefaultStore returns an error that wraps errors.ErrUnsupported.
func DefaultStore() (*Store, error) { return nil, unsupported() }

// OpenStore returns an error that wraps errors.ErrUnsupported.
func OpenStore(string) (*Store, error) { return nil, unsupported() }

// Layers returns an error that wraps errors.ErrUnsupported.
func (*Store) Layers() ([]Layer, error) { return nil, unsupported() }

// Collect returns an error that wraps errors.ErrUnsupported.
func (*Store) Collect(int64) (int64, error) { return 0, unsupported() }

// Verify returns an error that wraps errors.ErrUnsupported.
func (*Store) Verify(context.Context) error { return unsupported() }

func (*Store) unpack(context.Context, *source, *options) (*Image, error) { return nil, unsupported() }

func find(context.Context, string, *options) (*source, error) {
	return nil, unsupported()
}

func readMerged([]string, string, int64) ([]byte, error) { return nil, unsupported() }

func (*source) close() {}

func (*layer) files() string  { return "" }
func (*layer) release() error { return nil }
