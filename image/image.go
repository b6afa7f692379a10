// Package image has container images as root file systems:
//
//	img, err := image.Open(ctx, "docker.io/library/debian:bookworm-slim")
//	if err != nil { ... }
//	defer img.Close()
//	out, err := sandbox.New(img.Options()...).With(img.Command("cat", "/etc/os-release")).Output(ctx)
//
// An image comes from a registry, an OCI layout, or an archive of docker save or skopeo. Its layers
// are unpacked once into a store, which processes share, and become the layers of
// sandbox.LayersRootfs; what that says about owners and kernels applies to them.
package image

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cellkit/sandbox"
)

// Image is an open image. Its layers stay in the store at least until Close, or the end of the
// process.
type Image struct {
	name   string // as given to Open
	digest v1.Hash
	config v1.Config
	layers []*layer // the lowest first
}

// Option changes how Open finds and unpacks an image.
type Option func(*options)

type options struct {
	store    *Store
	platform string
	wanted   v1.Platform // platform, parsed
	progress func(Progress)
	keys     authn.Keychain
	limits   limits
	keep     *int64
	patience time.Duration // how long a registry may make next to no progress
}

// Progress reports how far Open has read a layer that is not in the store yet.
type Progress struct {
	Layer        string // its digest
	Index, Count int    // its index in the image, from 0, and the number of layers
	Bytes, Total int64  // read so far, and in all; compressed, if the source has them so
}

// WithStore sets the store into which layers are unpacked. Default: DefaultStore.
func WithStore(s *Store) Option { return func(o *options) { o.store = s } }

// WithPlatform chooses among images for several platforms, such as "linux/arm64" or "linux/arm/v7".
// Default: linux on this machine's architecture.
func WithPlatform(platform string) Option { return func(o *options) { o.platform = platform } }

// WithProgress makes Open call f from time to time, from one goroutine, while it reads layers.
func WithProgress(f func(Progress)) Option { return func(o *options) { o.progress = f } }

// WithKeychain sets where the credentials for registries come from. Default: authn.DefaultKeychain,
// which reads the configuration of docker login.
func WithKeychain(k authn.Keychain) Option { return func(o *options) { o.keys = k } }

// WithLimits bounds each layer: the bytes that it may take, as a tar file and as files, and the
// number of its files, which includes repeated ones and directories that it needs but does not
// describe. Names may have 256 bytes on average, or 1 MiB together if that is more, and lead
// through 64 directories and links on average, or 65,536 together. Default: 16 GiB and a million
// files.
func WithLimits(bytes, files int64) Option {
	return func(o *options) { o.limits = limits{bytes, files} }
}

// WithStoreSize makes Open, at its end, remove layers that no open image uses from the store, the
// least recently used first, until the files in it have at most that many bytes. Default: nothing
// is removed; see Store.Collect.
func WithStoreSize(bytes int64) Option { return func(o *options) { o.keep = &bytes } }

// Open finds an image and unpacks those of its layers that the store does not have. ref is
//
//   - a path, which begins with "/", "./" or "../": of the directory of an OCI layout, or of an
//     archive of docker save (docker-archive) or of an OCI layout (oci-archive), which is not
//     compressed. Of several images in it what follows a colon chooses one, by its name, tag or
//     digest: "./save.tar:debian:12";
//   - else the name of an image in a registry, such as "debian:bookworm", "ghcr.io/owner/name:tag"
//     or "localhost:5000/name@sha256:...".
//
// Everything that Open reads from a registry, a layout or an archive is bounded, nothing leads out
// of it, and Open waits at most a minute without progress; docs/IMAGES.md has the bounds. A
// registry's redirects, and its service for signing in, may lead to addresses that are not public
// only if its own address is such a one. Proxies are those of the environment
// (http.ProxyFromEnvironment).
//
// Every digest is checked, from the manifest's to that of each layer's content. Layers become what
// container engines make of them: names that begin with a slash are below the root, and if a name
// comes twice the last one counts. Device nodes are left out: a run has a /dev of its own, and
// LeftOut lists those elsewhere. Extended attributes other than users' are left out too, including
// file capabilities, which have no effect in a run. An archive that no honest tool makes is refused
// and leaves nothing behind: names or hard links that lead out of the root, more than 256 nested
// directories, more bytes or files than WithLimits allows, with sparse files and compressed data
// counted as what they become. Symbolic links may be anything: inside a run they lead nowhere else,
// and Open follows none out of the layer.
//
// For root, files get the owners that they have in the image. For an ordinary user, they belong to
// that user, who can read all of them and enter all directories; the same holds for root without
// CAP_SYS_ADMIN, as in a container, or in a user namespace that has few ids. Set-uid programs of
// the image have no effect in a run, whoever unpacks it.
func Open(ctx context.Context, ref string, opts ...Option) (_ *Image, err error) {
	o := options{platform: "linux/" + runtime.GOARCH, keys: authn.DefaultKeychain, limits: limits{16 * sandbox.GiB, 1_000_000}, patience: time.Minute}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	if o.limits.bytes <= 0 || o.limits.files <= 0 {
		return nil, fmt.Errorf("image: WithLimits: %d bytes and %d files: both must be positive", o.limits.bytes, o.limits.files)
	}
	platform, err := v1.ParsePlatform(o.platform)
	if err != nil {
		return nil, fmt.Errorf("image: WithPlatform: %w", err)
	}
	o.wanted = normal(*platform)
	if o.store == nil {
		if o.store, err = DefaultStore(); err != nil {
			return nil, err
		}
	}
	src, err := find(ctx, ref, &o)
	if err != nil {
		return nil, fmt.Errorf("image: %s: %w", ref, err)
	}
	defer src.close()
	if err := checkConfig(src.config); err != nil {
		return nil, fmt.Errorf("image: %s: %w", ref, err)
	}
	img, err := o.store.unpack(ctx, src, &o)
	if err != nil {
		return nil, fmt.Errorf("image: %s: %w", ref, foreign{err})
	}
	img.name = ref
	if o.keep != nil {
		if _, err := o.store.Collect(*o.keep); err != nil {
			return nil, errors.Join(err, img.Close())
		}
	}
	return img, nil
}

// normal returns a platform without a variant that is the default.
func normal(p v1.Platform) v1.Platform {
	if p.Architecture == "arm64" && p.Variant == "v8" || p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// Close allows the store to remove the image's layers. Runs that have started keep them; none may
// start after it.
func (i *Image) Close() error {
	var errs []error
	for _, l := range i.layers {
		errs = append(errs, l.release())
	}
	i.layers = nil
	return errors.Join(errs...)
}

// Digest returns the digest of the image's manifest, such as "sha256:...".
func (i *Image) Digest() string { return i.digest.String() }

// Rootfs returns the image's files as a root.
func (i *Image) Rootfs() sandbox.Rootfs { return sandbox.LayersRootfs(i.dirs()...) }

// dirs returns the directories of the layers, the lowest first.
func (i *Image) dirs() (dirs []string) {
	for _, l := range i.layers {
		if l.info.Opaque { // hides those below
			dirs = nil
		}
		dirs = append(dirs, l.files())
	}
	return dirs
}
