package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPatternIn(t *testing.T) {
	asked := *pkgPattern
	defer func() { *pkgPattern = asked }()
	for _, test := range []struct {
		asked string
		want  map[string]string // by module
	}{
		{everything, map[string]string{".": "./...", "image": "./...", "queue": "./...", "compose": "./..."}},
		{".", map[string]string{".": "."}},
		{"./internal/...", map[string]string{".": "./internal/..."}},
		{"./image", map[string]string{"image": "./"}},
		{"image/...", map[string]string{"image": "./.../"}},
		{"./image/cmd/sandbox", map[string]string{"image": "./cmd/sandbox/"}},
		{"./examples/services", map[string]string{"examples": "./services/"}},
		{"./imaginary", map[string]string{".": "./imaginary"}},
	} {
		*pkgPattern = test.asked
		got := map[string]string{}
		for _, module := range modules {
			if pattern, ok := patternIn(module); ok {
				got[module] = pattern
			}
		}
		assert.Equal(t, test.want, got, test.asked)
	}
}
