//go:build linux

package image

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
)

// keychain has a password for everybody.
type keychain struct{}

func (keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "user", Password: "password"}, nil
}

// A registry as they usually are: TLS with HTTP/2, a token for a password, blobs on another host,
// which gets neither, and temporary errors.
func TestRootlessRegistry(t *testing.T) {
	h := newHostile(t, nil) // answers as it should
	var mu sync.Mutex
	failed, protocols := map[string]bool{}, map[string]bool{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		protocols[r.Proto] = true
		switch auth := r.Header.Get("Authorization"); {
		case r.URL.Path == "/token":
			if user, password, _ := r.BasicAuth(); user == "user" && password == "password" && r.FormValue("scope") == "repository:a/blobs/b:pull" {
				_, _ = w.Write([]byte(`{"token":"secret"}`))
				return
			}
			http.Error(w, "no", http.StatusForbidden)
		case auth != "Bearer secret":
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/sha256:"):
			http.Redirect(w, r, h.URL+r.URL.Path, http.StatusTemporaryRedirect)
		case strings.Contains(r.URL.Path, "/manifests/") && !failed["manifest"]:
			failed["manifest"] = true
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			h.honest(w, r)
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	before := remote.DefaultTransport
	defer func() { remote.DefaultTransport = before }()
	trusting := before.(*http.Transport).Clone()
	trusting.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	trusting.TLSClientConfig.RootCAs.AddCert(server.Certificate())
	remote.DefaultTransport = trusting

	handler := h.Config.Handler
	h.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token went elsewhere")
		}
		handler.ServeHTTP(w, r)
	})
	img := open(t, newStore(t), strings.TrimPrefix(server.URL, "https://")+"/a/blobs/b:tag", WithKeychain(keychain{}))
	byDigest := open(t, newStore(t), strings.TrimPrefix(server.URL, "https://")+"/a/blobs/b@"+img.Digest(), WithKeychain(keychain{}))
	require.Equal(t, img.Digest(), byDigest.Digest())
	require.Contains(t, protocols, "HTTP/2.0")
	require.True(t, failed["manifest"])

	other := "sha256:" + strings.Repeat("0", 64)
	_, err := Open(t.Context(), strings.TrimPrefix(server.URL, "https://")+"/a/blobs/b@"+other, WithStore(newStore(t)), WithKeychain(keychain{}))
	require.ErrorContains(t, err, "the manifest has the digest "+img.Digest()+", not "+other)
	_, err = Open(t.Context(), strings.TrimPrefix(server.URL, "https://")+"/a/blobs/b:tag", WithStore(newStore(t)))
	require.ErrorContains(t, err, "403")
}
