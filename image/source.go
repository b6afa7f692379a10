package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// source is an image that was found, with nothing of it read but its manifest and its configuration, which have the right digests.
type source struct {
	image  v1.Image
	digest v1.Hash
	config *v1.ConfigFile
	// plain says that the source has layers as they are, and none that is compressed with a digest of its own: an archive of docker save.
	plain bool
	temp  string // of an archive
}

func (s *source) close() {
	if s.temp != "" {
		_ = os.RemoveAll(s.temp) // in the system's directory for what is temporary
	}
}

// find reads as much of an image as says what it consists of.
func find(ctx context.Context, ref string, platform v1.Platform, keys authn.Keychain) (*source, error) {
	s, err := locate(ctx, ref, platform, keys)
	if err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func isPath(ref string) bool {
	return strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../")
}

func locate(ctx context.Context, ref string, platform v1.Platform, keys authn.Keychain) (*source, error) {
	if !isPath(ref) {
		return pull(ctx, ref, platform, keys)
	}
	file, tag := ref, ""
	info, err := os.Stat(file)
	if i := strings.LastIndexByte(ref, ':'); err != nil && i > strings.LastIndexByte(ref, '/') {
		file, tag = ref[:i], ref[i+1:]
		info, err = os.Stat(file)
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return fromLayout(file, tag, platform)
	}
	return fromArchive(file, tag, platform)
}

// pull asks a registry. The client checks the digests of what it gets.
func pull(ctx context.Context, ref string, platform v1.Platform, keys authn.Keychain) (*source, error) {
	named, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(named, remote.WithContext(ctx), remote.WithPlatform(platform), remote.WithAuthFromKeychain(keys), remote.WithTransport(bounded{remote.DefaultTransport}))
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	return &source{image: img, digest: digest}, err
}

// bounded keeps a registry from sending manifests without end. Layers and configurations are held to the sizes that manifests have of them.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil && !strings.Contains(r.URL.Path, "/blobs/") {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxManifest), resp.Body}
	}
	return resp, err
}

// fromLayout takes the one image that the tag and the platform leave.
func fromLayout(dir, tag string, platform v1.Platform) (*source, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("no OCI layout: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, d := range manifest.Manifests {
		if named := d.Annotations["org.opencontainers.image.ref.name"]; tag == "" || named == tag || strings.HasSuffix(named, ":"+tag) {
			found = append(found, d)
		}
	}
	return choose(index, found, tag, platform, 0)
}

// maxIndexes is how many indexes of images may be within each other.
const maxIndexes = 8

func choose(index v1.ImageIndex, found []v1.Descriptor, tag string, platform v1.Platform, depth int) (*source, error) {
	var fits []v1.Descriptor
	for _, d := range found {
		if d.Platform == nil || d.Platform.Satisfies(platform) {
			fits = append(fits, d)
		}
	}
	switch {
	case len(found) == 0 && tag != "":
		return nil, fmt.Errorf("there is no image %q", tag)
	case len(fits) == 0:
		return nil, fmt.Errorf("there is no image for %s", platform)
	case len(fits) > 1 && depth == 0:
		return nil, fmt.Errorf("there are %d images: choose one with a tag", len(fits))
	case depth > maxIndexes:
		return nil, errors.New("too many indexes within each other")
	}
	d := fits[0]
	if !d.MediaType.IsIndex() {
		img, err := index.Image(d.Digest)
		return &source{image: img, digest: d.Digest}, err
	}
	inner, err := index.ImageIndex(d.Digest)
	if err != nil {
		return nil, err
	}
	raw, err := inner.RawManifest()
	if err == nil {
		err = checkDigest("the index", raw, d.Digest)
	}
	if err != nil {
		return nil, err
	}
	manifest, err := inner.IndexManifest()
	if err != nil {
		return nil, err
	}
	return choose(inner, manifest.Manifests, "", platform, depth+1)
}

// fromArchive tells docker save's archives, which have a manifest.json, from those of an OCI layout.
func fromArchive(file, tag string, platform v1.Platform) (*source, error) {
	opener := func() (io.ReadCloser, error) { return os.Open(file) }
	if err := checkSizes(file); err != nil {
		return nil, err
	}
	if _, err := tarball.LoadManifest(opener); err == nil {
		return fromDockerArchive(opener, tag)
	}
	temp, err := os.MkdirTemp("", "sandbox-image-")
	if err != nil {
		return nil, err
	}
	if err := extractLayout(file, temp); err != nil {
		return nil, errors.Join(fmt.Errorf("neither an archive of docker save nor of an OCI layout: %w", err), os.RemoveAll(temp))
	}
	s, err := fromLayout(temp, tag, platform)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(temp))
	}
	s.temp = temp
	return s, nil
}

// checkSizes refuses an archive of which files would take more than itself: sparse ones, of which what reads them whole has no idea.
func checkSizes(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	total := int64(0)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("neither a directory nor a tar archive: %w", err)
		}
		if total += h.Size; total > info.Size() {
			return fmt.Errorf("%w: %q: its files are larger than itself", errHostile, file)
		}
	}
}

func fromDockerArchive(open tarball.Opener, tag string) (*source, error) {
	var named *name.Tag
	if tag != "" {
		manifest, err := tarball.LoadManifest(open)
		if err != nil {
			return nil, err
		}
		for _, d := range manifest {
			for _, t := range d.RepoTags {
				if known, err := name.NewTag(t); err == nil && (known.TagStr() == tag || t == tag) {
					named = &known
				}
			}
		}
		if named == nil {
			return nil, fmt.Errorf("there is no image %q", tag)
		}
	}
	img, err := tarball.Image(open, named)
	if err != nil {
		return nil, err
	}
	digest, err := img.ConfigName() // docker's own name for it: such an archive has no manifest with a digest
	return &source{image: img, digest: digest, plain: true}, err
}

// extractLayout takes the files of a layout out of an archive: nothing but oci-layout, index.json and blobs with a digest for a name.
func extractLayout(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at := path.Clean(h.Name)
		_, hashErr := v1.NewHash(path.Base(path.Dir(at)) + ":" + path.Base(at))
		isBlob := hashErr == nil && path.Dir(path.Dir(at)) == "blobs"
		if h.Typeflag != tar.TypeReg || !isBlob && at != "oci-layout" && at != "index.json" {
			continue
		}
		if err := root.MkdirAll(path.Dir(at), 0o700); err != nil {
			return err
		}
		if err := writeFile(root, at, r); err != nil {
			return err
		}
	}
}

func writeFile(root *os.Root, at string, r io.Reader) error {
	out, err := root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

// maxManifest bounds what describes an image.
const maxManifest = 16 << 20

// check reads the manifest and the configuration, whose digests must be right: then those that the configuration has of the layers' contents are.
func (s *source) check() error {
	if !s.plain {
		raw, err := s.image.RawManifest()
		if err != nil {
			return err
		}
		if err := checkDigest("the manifest", raw, s.digest); err != nil {
			return err
		}
	}
	manifest, err := s.image.Manifest()
	if err != nil {
		return err
	}
	if n := manifest.Config.Size; n > maxManifest {
		return fmt.Errorf("the configuration has %d bytes, more than %d", n, maxManifest)
	}
	raw, err := s.image.RawConfigFile()
	if err != nil {
		return err
	}
	want := manifest.Config.Digest
	if s.plain {
		want = s.digest
	}
	if err := checkDigest("the configuration", raw, want); err != nil {
		return err
	}
	s.config = &v1.ConfigFile{}
	if err := json.Unmarshal(raw, s.config); err != nil {
		return fmt.Errorf("the configuration: %w", err)
	}
	if kind := s.config.RootFS.Type; kind != "layers" {
		return fmt.Errorf("the configuration: its root file system is of type %q, not layers", kind)
	}
	if n := len(s.config.RootFS.DiffIDs); n == 0 || n != len(manifest.Layers) {
		return fmt.Errorf("the configuration has %d layers, the manifest %d", n, len(manifest.Layers))
	}
	return nil
}

func checkDigest(what string, raw []byte, want v1.Hash) error {
	if len(raw) > maxManifest {
		return fmt.Errorf("%s has %d bytes, more than %d", what, len(raw), maxManifest)
	}
	got, _, err := v1.SHA256(bytes.NewReader(raw))
	if err == nil && got != want {
		err = fmt.Errorf("%s has the digest %s, not %s", what, got, want)
	}
	return err
}
