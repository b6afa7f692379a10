//go:build linux

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// hostile is a registry that has one image under every tag and whose handlers decide what it
// answers.
type hostile struct {
	*httptest.Server
	sent     atomic.Int64
	requests atomic.Int64
	blobs    map[string][]byte
	manifest []byte
	media    types.MediaType
}

// answer is what a hostile registry answers to one kind of request: "ping", "manifest", "config",
// "layer" or "token".
type answer func(h *hostile, w http.ResponseWriter, r *http.Request)

func newHostile(t testing.TB, answers map[string]answer) *hostile {
	h := &hostile{blobs: map[string][]byte{}, media: types.OCIManifestSchema1}
	layer := tarOf(t, file{name: "x", content: "x"})
	config, err := json.Marshal(&v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{h.add(t, layer).Digest}}})
	require.NoError(t, err)
	c, l := h.add(t, config), h.add(t, layer)
	c.MediaType, l.MediaType = types.OCIConfigJSON, types.OCIUncompressedLayer
	h.manifest, err = json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: h.media, Config: c, Layers: []v1.Descriptor{l}})
	require.NoError(t, err)
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		kind := "token"
		switch {
		case r.URL.Path == "/v2/":
			kind = "ping"
		case strings.Contains(r.URL.Path, "/manifests/"):
			kind = "manifest"
		case strings.HasSuffix(r.URL.Path, c.Digest.String()):
			kind = "config"
		case strings.Contains(r.URL.Path, "/blobs/sha256:"):
			kind = "layer"
		}
		if a := answers[kind]; a != nil {
			a(h, w, r)
			return
		}
		h.honest(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

// add puts a blob into the registry.
func (h *hostile) add(t testing.TB, b []byte) v1.Descriptor {
	digest, size, err := v1.SHA256(bytes.NewReader(b))
	require.NoError(t, err)
	h.blobs[digest.String()] = b
	return v1.Descriptor{Digest: digest, Size: size}
}

func (h *hostile) honest(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch b, ok := h.blobs[id]; {
	case ok:
		w.Header().Set("Content-Type", string(h.media))
		_, _ = w.Write(b)
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", string(h.media))
		_, _ = w.Write(h.manifest)
	}
}

func (h *hostile) ref() string { return strings.TrimPrefix(h.URL, "http://") + "/a/blobs/b:tag" }

// endless sends c until nobody reads, or far more than anybody should have read.
func endless(status int, c byte) answer {
	return func(h *hostile, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		b := bytes.Repeat([]byte{c}, 1<<20)
		for range 256 {
			n, err := w.Write(b)
			h.sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
}

// says answers with a document.
func says(media types.MediaType, document string) answer {
	return func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", string(media))
		_, _ = w.Write([]byte(document))
	}
}

// manifests answers with a changed copy of the honest manifest.
func manifests(change func(m *v1.Manifest)) answer {
	return func(h *hostile, w http.ResponseWriter, r *http.Request) {
		var m v1.Manifest
		_ = json.Unmarshal(h.manifest, &m) // it was made by json.Marshal
		change(&m)
		b, _ := json.Marshal(m)
		says(h.media, string(b))(h, w, r)
	}
}

func redirects(to string) answer {
	return func(_ *hostile, w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
}

func challenges(realm string) answer {
	return func(h *hostile, w http.ResponseWriter, _ *http.Request) {
		if strings.HasPrefix(realm, "/") {
			realm = h.URL + realm
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// bounded runs f and requires that it allocates no more than the given number of MiB and does not
// take long enough to have waited.
func bounded(t testing.TB, mib int, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	require.Less(t, time.Since(start), time.Minute)
	runtime.ReadMemStats(&after)
	require.Less(t, (after.TotalAlloc-before.TotalAlloc)>>20, uint64(mib), "MiB allocated")
}

const image1 = types.OCIManifestSchema1

// A registry that lies gets an error and takes neither memory nor time.
func TestRootlessAttackRegistry(t *testing.T) {
	many := func(format, element string, n int) string {
		return fmt.Sprintf(format, strings.TrimSuffix(strings.Repeat(element+",", n), ","))
	}
	layers := func(change func(l *v1.Descriptor)) answer {
		return manifests(func(m *v1.Manifest) { change(&m.Layers[0]) })
	}
	config := func(change func(c *v1.Descriptor)) answer {
		return manifests(func(m *v1.Manifest) { change(&m.Config) })
	}
	for name, test := range map[string]struct {
		on   string
		says answer
		want string
	}{
		"config of -1 byte":      {"manifest", config(func(c *v1.Descriptor) { c.Size = -1 }), "the size of the configuration is -1 bytes"},
		"config of -2 bytes":     {"manifest", config(func(c *v1.Descriptor) { c.Size = -2 }), "the size of the configuration is -2 bytes"},
		"config of no bytes":     {"manifest", config(func(c *v1.Descriptor) { c.Size = 0 }), "the size of the configuration is 0 bytes"},
		"config of most bytes":   {"manifest", config(func(c *v1.Descriptor) { c.Size = math.MaxInt64 }), "the size of the configuration is 9223372036854775807 bytes"},
		"config of 17 MiB":       {"manifest", config(func(c *v1.Descriptor) { c.Size = 17 << 20 }), "must be from 1 to 16777216"},
		"config of 1 byte":       {"manifest", config(func(c *v1.Descriptor) { c.Size = 1 }), "not 1"},
		"config without digest":  {"manifest", config(func(c *v1.Descriptor) { c.Digest = v1.Hash{} }), "cannot parse hash"},
		"layer of -1 byte":       {"manifest", layers(func(l *v1.Descriptor) { l.Size = -1 }), "layer 0: refused: its size is -1 bytes"},
		"layer of no bytes":      {"manifest", layers(func(l *v1.Descriptor) { l.Size = 0 }), "layer 0: refused: its size is 0 bytes"},
		"layer of most bytes":    {"manifest", layers(func(l *v1.Descriptor) { l.Size = math.MaxInt64 }), "more than 1048576 bytes: raise WithLimits"},
		"layer without digest":   {"manifest", layers(func(l *v1.Descriptor) { l.Digest = v1.Hash{} }), "cannot parse hash"},
		"layer of one more byte": {"manifest", layers(func(l *v1.Descriptor) { l.Size++ }), "bytes for sha256:"},
		"65 layers":              {"manifest", manifests(func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers, 65) }), "65 layers, at most 64"},
		"no layers":              {"manifest", manifests(func(m *v1.Manifest) { m.Layers = nil }), "the configuration has 1 layers, the manifest 0"},
		"endless manifest":       {"manifest", endless(200, ' '), "more than 16777216 bytes"},
		"endless config":         {"config", endless(200, ' '), "more than "},
		"endless layer":          {"layer", endless(200, 0), "more than "},
		"endless ping":           {"ping", endless(200, ' '), ""},
		"endless challenge":      {"ping", endless(401, ' '), ""},
		"endless error":          {"manifest", endless(404, 'x'), "unexpected status code 404"},
		"endless layer error":    {"layer", endless(404, 'x'), "unexpected status code 404"},
		"layer cut short": {"layer", func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("x"))
		}, "bytes are missing: unexpected EOF"},
		"5 million layers": {"manifest", says(image1, many(`{"layers":[%s]}`, `{}`, 5<<20)), "more than 131072 values"},
		"5 million images": {"manifest", says(types.OCIImageIndex, many(`{"manifests":[%s]}`, `{}`, 5<<20)), "more than 131072 values"},
		"7 million nests":  {"manifest", says(image1, `{"annotations":`+strings.Repeat("[", 7<<20)), "more than 131072 values"},
		"100,000 nests":    {"manifest", says(image1, `{"annotations":`+strings.Repeat("[", 100_000)), "exceeded max depth"},
		"no JSON":          {"manifest", says(image1, strings.Repeat(`"`, 1<<20)), "invalid character"},
		"empty manifest":   {"manifest", says(image1, ""), "the size of the manifest is 0 bytes"},
		"no manifest":      {"manifest", says("text/html", "<html>"), `its media type is "text/html", which is no image's`},
		"other schema":     {"manifest", says(types.DockerManifestSchema1, "{}"), "which is no image's"},
		"images for nobody": {"manifest", says(types.OCIImageIndex, many(`{"manifests":[%s]}`, `{"platform":{"os":"`+strings.Repeat("x", 1000)+`"}}`, 4000)),
			"there is no image for linux/"},
		"large headers": {"manifest", func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 10_000))
			}
		}, "headers exceeded"},
		"large location":  {"manifest", redirects("/" + strings.Repeat("x", 100_000)), "headers exceeded"},
		"ping in circles": {"ping", redirects("/v2/"), "redirects"},
		"manifest in circle": {"manifest", func(_ *hostile, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, "redirects"},
		"layer in circles": {"layer", func(_ *hostile, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, "redirects"},
		"terminal": {"manifest", func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "\x1b]0;title\a\u202e\x00", 404)
		}, "]0;title"},
		"compressed bomb": {"manifest", func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Type", string(image1))
			_, _ = w.Write(gzipped(t, make([]byte, 64<<20)))
		}, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			h, store := newHostile(t, map[string]answer{test.on: test.says}), newStore(t)
			bounded(t, 300, func() {
				img, err := Open(t.Context(), h.ref(), WithStore(store), WithLimits(1<<20, 100))
				if test.want == "" {
					require.NoError(t, err)
					require.NoError(t, img.Close())
					return
				}
				require.ErrorContains(t, err, test.want)
				require.Less(t, len(err.Error()), 2*maxText)
				require.NotContains(t, err.Error(), "\x1b")
				requireEmpty(t, store)
			})
			require.Less(t, h.sent.Load(), int64(48<<20), "bytes sent, which are those taken and what the kernel keeps of a connection")
			require.Less(t, h.requests.Load(), int64(40))
		})
	}
}

// A token is bounded as well, and so is the request for it.
func TestRootlessAttackRegistryToken(t *testing.T) {
	for name, test := range map[string]struct {
		says answer
		want string
	}{
		"endless":       {endless(200, ' '), "the registry sends more than 65536 bytes"},
		"endless error": {endless(403, 'x'), "unexpected status code 403"},
		"in circles":    {redirects("/token"), "redirects"},
		"none":          {says("application/json", "{}"), "no token"},
		"elsewhere":     {redirects("http://169.254.169.254/latest/meta-data"), "169.254.169.254"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t, map[string]answer{"ping": challenges("/token"), "token": test.says})
			bounded(t, 50, func() {
				_, err := Open(t.Context(), h.ref(), WithStore(newStore(t)))
				require.ErrorContains(t, err, test.want)
			})
			require.Less(t, h.sent.Load(), int64(32<<20))
		})
	}
}

// An index within an index, and so on, and a layer with another source.
func TestRootlessAttackRegistryManifests(t *testing.T) {
	var asked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer elsewhere.Close()
	h := newHostile(t, map[string]answer{"layer": func(_ *hostile, w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) }})
	var m v1.Manifest
	require.NoError(t, json.Unmarshal(h.manifest, &m))
	m.Layers[0].URLs = []string{strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)}
	honest := h.manifest
	var err error
	h.manifest, err = json.Marshal(m)
	require.NoError(t, err)
	_, err = Open(t.Context(), h.ref(), WithStore(newStore(t)))
	require.ErrorContains(t, err, "404")
	require.False(t, asked.Load(), "what a manifest names is asked")

	h.manifest = honest
	for range maxIndexes + 1 {
		d := h.add(t, h.manifest)
		d.MediaType = h.media
		h.media = types.OCIImageIndex
		h.manifest, err = json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: h.media, Manifests: []v1.Descriptor{d}})
		require.NoError(t, err)
	}
	_, err = Open(t.Context(), h.ref(), WithStore(newStore(t)))
	require.ErrorContains(t, err, "too many indexes within each other")
}

// Registries that send no media type are understood, unless the manifest is ambiguous.
func TestMediaType(t *testing.T) {
	for raw, want := range map[string]types.MediaType{
		`{"layers":[]}`: types.OCIManifestSchema1, `{"manifests":[]}`: types.OCIImageIndex, `{"layers":[],"manifests":[]}`: "text/plain", `{}`: "text/plain", `<`: "text/plain", `[]`: "text/plain",
		`{"mediaType":"` + string(types.DockerManifestList) + `","layers":[]}`: types.DockerManifestList,
	} {
		require.Equal(t, want, mediaType("text/plain; charset=utf-8", []byte(raw)), raw)
		require.Equal(t, types.DockerManifestSchema2, mediaType(string(types.DockerManifestSchema2)+"; charset=utf-8", []byte(raw)), raw)
	}
}

// The registry that is asked for a manifest can't make this machine connect to others.
func TestRootlessAttackRegistryRedirects(t *testing.T) {
	for _, to := range []string{"169.254.169.254", "10.255.255.1", "172.16.0.1", "192.168.255.1", "100.64.0.1", "168.63.129.16", "224.0.0.1", "255.255.255.255", "198.18.0.1",
		"[fd00:ec2::254]", "[fe80::1]", "[ff02::1]", "[::ffff:169.254.169.254]", "[::ffff:a00:1]", "[64:ff9b::a00:1]", "[2002:a9fe:a9fe::1]", "[::10.0.0.1]"} {
		for _, on := range []string{"ping", "manifest", "config", "layer", "token"} {
			answers := map[string]answer{on: redirects("http://" + to + "/latest/meta-data")}
			if on == "token" {
				answers["ping"] = challenges("/token")
			}
			h := newHostile(t, answers)
			_, err := Open(t.Context(), h.ref(), WithStore(newStore(t)))
			require.Error(t, err, "%s to %s", on, to)
			require.Regexp(t, "refused|SSRF|private or link-local", err.Error(), "%s to %s", on, to)
		}
		h := newHostile(t, map[string]answer{"ping": challenges("http://" + to + "/token")})
		_, err := Open(t.Context(), h.ref(), WithStore(newStore(t)))
		require.Error(t, err, to)
		require.Regexp(t, "refused|private or link-local", err.Error(), to)
	}
}

// fakeDNS makes a server of this test resolve names to addresses, one after the other.
func fakeDNS(t *testing.T, answers map[string][]string) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	asked := map[string]int{}
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			q := m.Questions[0]
			if list := answers[strings.TrimSuffix(q.Name.String(), ".")]; len(list) > 0 && q.Type == dnsmessage.TypeA {
				at := list[min(asked[q.Name.String()], len(list)-1)]
				asked[q.Name.String()]++
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body: &dnsmessage.AResource{A: [4]byte(net.ParseIP(at).To4())}}}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
	preferGo, dial := net.DefaultResolver.PreferGo, net.DefaultResolver.Dial
	net.DefaultResolver.PreferGo = true
	net.DefaultResolver.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}
	t.Cleanup(func() {
		net.DefaultResolver.PreferGo, net.DefaultResolver.Dial = preferGo, dial
		_ = conn.Close()
	})
}

// Names are checked by the address to which they resolve when they are connected to.
func TestRootlessAttackRegistryNames(t *testing.T) {
	fakeDNS(t, map[string][]string{"registry.localhost": {"127.0.0.1"}, "inside.localhost": {"169.254.169.254"}, "private.localhost": {"10.255.255.1"}, "blobs.localhost": {"127.0.0.1"},
		"turning.localhost": {"127.0.0.1", "169.254.169.254"}})
	open := func(host string, answers map[string]answer) error {
		h := newHostile(t, answers)
		img, err := Open(t.Context(), strings.Replace(h.ref(), "127.0.0.1", host, 1), WithStore(newStore(t)))
		if err == nil {
			err = img.Close()
		}
		return err
	}
	require.NoError(t, open("registry.localhost", nil))
	for _, to := range []string{"inside", "private"} {
		for _, on := range []string{"ping", "manifest", "layer"} {
			err := open("registry.localhost", map[string]answer{on: redirects("http://" + to + ".localhost:5000/x")})
			require.ErrorContains(t, err, "refused: the registry leads to "+to+".localhost:5000", on)
		}
	}
	err := open("registry.localhost", map[string]answer{"ping": challenges("http://inside.localhost/token")})
	require.ErrorContains(t, err, "refused: the registry leads to inside.localhost:80")
	// The registry is on this machine, so its blobs may be, too.
	require.NoError(t, open("registry.localhost", map[string]answer{"layer": func(h *hostile, w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "blobs.") {
			h.honest(w, r)
			return
		}
		http.Redirect(w, r, strings.Replace(h.URL, "127.0.0.1", "blobs.localhost", 1)+r.URL.Path, http.StatusFound)
	}}))
	// Its own name may not resolve to another kind of address later.
	err = open("turning.localhost", map[string]answer{"ping": func(_ *hostile, w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }})
	require.ErrorContains(t, err, "refused: the registry leads to turning.localhost")
}

// A public registry does not lead to this machine, and through a proxy no address of the proxy's
// network can be asked for.
func TestRootlessAttackRegistryPublic(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	get := func(n *network, url string) error {
		defer n.close()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		resp, err := n.RoundTrip(req)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	port := server.URL[strings.LastIndexByte(server.URL, ':'):]
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		n := newNetwork("registry.example", time.Minute)
		n.proxied.Proxy = nil
		require.ErrorContains(t, get(n, "http://"+host+port), "refused: the registry leads to", host)
		n.reached(netip.MustParseAddr("192.0.2.1"))
		require.ErrorContains(t, get(n, "http://"+host+port), "refused: the registry leads to", host)
	}
	// The caller chooses the proxy, and the proxy resolves names itself.
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer proxy.Close()
	for host, want := range map[string]string{"registry.example": "", "elsewhere.example": "", "8.8.8.8": "", "127.0.0.1": "refused", "localhost": "refused", "x.localhost": "refused",
		"[fd00::1]": "refused", "169.254.169.254": "refused"} {
		n := newNetwork("registry.example", time.Minute)
		at, err := url.Parse(proxy.URL)
		require.NoError(t, err)
		n.proxied.Proxy = http.ProxyURL(at)
		if err := get(n, "http://"+host+"/v2/"); want == "" {
			require.NoError(t, err, host)
		} else {
			require.ErrorContains(t, err, want, host)
		}
	}
}

// Addresses by where they can be reached from.
func TestReach(t *testing.T) {
	for addr, want := range map[string]reach{
		"8.8.8.8": public, "192.0.2.1": public, "172.32.0.1": public, "100.128.0.1": public, "2001:4860::1": public, "64:ff9b::808:808": public, "2002:808:808::1": public, "::ffff:8.8.8.8": public,
		"127.1.2.3": loopback, "0.0.0.0": loopback, "::": loopback, "::1": loopback, "::ffff:127.0.0.1": loopback, "64:ff9b::7f00:1": loopback, "2002:7f00:1::": loopback, "::ffff:0.0.0.0": loopback,
		"10.0.0.1": private, "172.31.255.255": private, "192.168.1.1": private, "100.127.0.1": private, "fc00::1": private, "fdff::1": private, "fec0::1": private, "::10.0.0.1": private, "198.19.0.1": private,
		"169.254.0.1": linkLocal, "fe80::1": linkLocal, "fe80::1%eth0": linkLocal, "168.63.129.16": linkLocal, "::ffff:169.254.169.254": linkLocal,
		"224.0.0.1": group, "239.255.255.255": group, "255.255.255.255": group, "ff02::1": group,
	} {
		at, err := netip.ParseAddr(addr)
		require.NoError(t, err)
		require.Equal(t, want, reachOf(at), addr)
	}
}

// A registry that does not answer: the wait ends with the patience, or at once with ctx.
func TestRootlessAttackRegistrySlow(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	wait := func(d time.Duration) bool {
		select {
		case <-stop:
			return false
		case <-time.After(d):
			return true
		}
	}
	silent := func(_ *hostile, _ http.ResponseWriter, r *http.Request) { wait(time.Hour) }
	stalls := func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(" "))
		w.(http.Flusher).Flush()
		wait(time.Hour)
	}
	trickles := func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
		for wait(5 * time.Millisecond) {
			if _, err := w.Write([]byte(" ")); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	}
	fails := func(_ *hostile, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	patience := func(d time.Duration) Option { return func(o *options) { o.patience = d } }
	for name, says := range map[string]answer{"silent": silent, "stalls": stalls, "trickles": trickles, "fails": fails} {
		for _, on := range []string{"ping", "manifest", "config", "layer", "token"} {
			answers := map[string]answer{on: says}
			if on == "token" {
				answers["ping"] = challenges("/token")
			}
			h, store := newHostile(t, answers), newStore(t)
			if name != "fails" && (on != "ping" || name == "silent") {
				_, err := Open(t.Context(), h.ref(), WithStore(store), patience(300*time.Millisecond))
				require.ErrorContains(t, err, "the registry sent less than 65536 bytes in 300ms", "%s %s", on, name)
				requireEmpty(t, store)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			start := time.Now()
			_, err := Open(ctx, h.ref(), WithStore(store))
			require.ErrorIs(t, err, context.DeadlineExceeded, "%s %s", on, name)
			require.Less(t, time.Since(start), time.Minute)
			cancel()
			requireEmpty(t, store)
		}
	}
}
