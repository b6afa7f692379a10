//go:build linux

package seccomp

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

var (
	defaults = cache[string]{}            // by what they allow
	profiles = cache[[sha256.Size]byte]{} // by content
)

// CachedDefault returns the compiled default profile; the order of capabilities does not matter.
func CachedDefault(caps []string, setID bool) (*Filter, error) {
	set := slices.Compact(slices.Sorted(slices.Values(caps)))
	return defaults.get(fmt.Sprint(setID, set), func() (*Filter, error) {
		p, err := Default(set, setID)
		if err != nil {
			return nil, err
		}
		return Compile(p, runtime.GOARCH)
	})
}

// CachedCompile compiles a profile for this architecture, once for each content. The profile may be
// changed afterwards.
func CachedCompile(p *specs.LinuxSeccomp) (*Filter, error) {
	// The encoding is complete: profiles are made to be JSON.
	content, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return profiles.get(sha256.Sum256(content), func() (*Filter, error) { return Compile(p, runtime.GOARCH) })
}

// cacheSize bounds a cache, because a service may make a new profile for each task. A filter takes
// a few KiB.
const cacheSize = 128

// cache keeps filters that compiled. The zero value is ready to use.
type cache[K comparable] struct {
	mu      sync.RWMutex
	filters map[K]*Filter
}

func (c *cache[K]) get(key K, compile func() (*Filter, error)) (*Filter, error) {
	c.mu.RLock()
	f := c.filters[key]
	c.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	f, err := compile()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.filters == nil || len(c.filters) >= cacheSize {
		// Starting over is rare and cheap, compared to what keeping the order of use would
		// cost each lookup.
		c.filters = make(map[K]*Filter)
	}
	c.filters[key] = f
	return f, nil
}
