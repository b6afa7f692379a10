//go:build linux

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registryContent reads the images of a repository. Its client has signed in and bounds the
// answers.
type registryContent struct {
	client  *http.Client
	network *network
	repo    name.Repository
	first   v1.Descriptor // the manifest that the image's name stands for
	raw     []byte
}

// pull finds an image in a registry.
func pull(ctx context.Context, ref string, o *options) (*source, error) {
	named, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	r := &registryContent{repo: named.Context(), network: newNetwork(named.Context().RegistryStr(), o.patience)}
	s, err := r.find(ctx, named, o)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return closing(s, r, err)
}

func (r *registryContent) close() { r.network.close() }

func (r *registryContent) find(ctx context.Context, named name.Reference, o *options) (*source, error) {
	auth := authn.Anonymous
	if o.keys != nil {
		var err error
		if auth, err = authn.Resolve(ctx, o.keys, r.repo); err != nil {
			return nil, err
		}
	}
	signedIn, err := transport.NewWithContext(ctx, r.repo.Registry, auth, r.network, []string{r.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	r.client = &http.Client{Transport: signedIn} // it follows at most maxHops redirects
	if err := r.findManifest(ctx, named); err != nil {
		return nil, err
	}
	return resolve(ctx, r, r.first, o)
}

// findManifest reads what the registry has under a name: an index or a manifest.
func (r *registryContent) findManifest(ctx context.Context, named name.Reference) error {
	resp, err := r.get(ctx, "manifests", named.Identifier(), maxManifest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if r.raw, err = readAll(resp.Body, maxManifest); err != nil {
		return err
	}
	if r.first.Digest, r.first.Size, err = v1.SHA256(bytes.NewReader(r.raw)); err != nil {
		return err
	}
	if d, ok := named.(name.Digest); ok {
		if r.first.Digest, err = v1.NewHash(d.DigestStr()); err != nil { // resolve compares it
			return err
		}
	}
	r.first.MediaType = mediaType(resp.Header.Get("Content-Type"), r.raw)
	return nil
}

// mediaType returns the type of a manifest. Registries of static files send a type of their own,
// and the manifest itself may lack one.
func mediaType(header string, raw []byte) types.MediaType {
	header, _, _ = strings.Cut(header, ";")
	sent := types.MediaType(strings.TrimSpace(header))
	if sent.IsImage() || sent.IsIndex() {
		return sent
	}
	var is struct {
		MediaType         types.MediaType
		Layers, Manifests json.RawMessage
	}
	_ = json.Unmarshal(raw, &is) // resolve reports that what is not JSON has no type
	switch {
	case is.MediaType != "":
		return is.MediaType
	case is.Layers != nil && is.Manifests == nil:
		return types.OCIManifestSchema1
	case is.Manifests != nil && is.Layers == nil:
		return types.OCIImageIndex
	}
	return sent
}

// accepted are the types of manifests that Open understands.
var accepted = []string{string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2)}

func (r *registryContent) get(ctx context.Context, kind, identifier string, limit int64) (*http.Response, error) {
	u := url.URL{Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr(), Path: "/v2/" + r.repo.RepositoryStr() + "/" + kind + "/" + identifier}
	req, err := http.NewRequestWithContext(withLimit(ctx, limit), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if kind == "manifests" {
		req.Header.Set("Accept", strings.Join(accepted, ","))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func (r *registryContent) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	kind := "blobs"
	switch {
	case d.Digest == r.first.Digest:
		return io.NopCloser(bytes.NewReader(r.raw)), nil
	case d.MediaType.IsImage() || d.MediaType.IsIndex():
		kind = "manifests"
	}
	resp, err := r.get(ctx, kind, d.Digest.String(), d.Size)
	if err != nil {
		return nil, err
	}
	if n := resp.ContentLength; n >= 0 && n != d.Size {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the registry has %d bytes for %s, not %d", n, d.Digest, d.Size)
	}
	return exactly(ctx, resp.Body, d.Size), nil
}
