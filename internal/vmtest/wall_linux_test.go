package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// The black-box tests have a wall that is in another module, for the asking.
func TestAddWall(t *testing.T) {
	testkit.Need(t, "time to build programs")
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	for _, wall := range []string{"", "runc", "docker", "libvirt"} {
		s := &stage{root: root, dir: t.TempDir()}
		require.NoError(t, s.addWall(wall))
		cmd := exec.Command("go", "list", "-deps", "-overlay="+s.overlay, "./internal/testkit/runs")
		cmd.Dir = root
		deps, err := cmd.Output()
		require.NoError(t, err)
		for _, module := range []string{"docker", "libvirt"} {
			assert.Equal(t, wall == module, slices.Contains(strings.Fields(string(deps)), "github.com/cellkit/sandbox/"+module), "%s with %q", module, wall)
		}
	}
}
