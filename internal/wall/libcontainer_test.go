//go:build linux && cgo

package wall

import (
	"errors"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestInterpret has texts of libcontainer's errors.
func TestInterpret(t *testing.T) {
	for _, test := range []struct {
		text string
		want interpreted
	}{
		{"no space left on device", interpreted{}},
		{"EOF; runc init error(s): nsexec-1[77]: failed to unshare user namespace: Operation not permitted", interpreted{denied: true, child: 77}},
		{"EOF; runc init error(s): nsexec-0[76]: failed to use newuid map on 77", interpreted{why: IDsUnmapped}},
		{"error during container init: can't apply capabilities: operation not permitted", interpreted{why: CapabilitiesLacking, denied: true}},
		{`error during container init: error mounting "proc" to rootfs at "/proc": operation not permitted`, interpreted{why: ProcUnmounted, denied: true}},
		{"clone: function not implemented", interpreted{denied: true}},
	} {
		require.Equal(t, test.want, interpret(errors.New("unable to start container process: "+test.text)), test.text)
	}
}

// libcontainer's API changes with every minor version, so only one package uses it. The module in
// bench measures it.
func TestLibcontainerIsUsedHereOnly(t *testing.T) {
	const root = "../.."
	users := map[string]bool{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if d.IsDir() && (name == "bench" || name != "." && strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			if strings.Contains(i.Path.Value, "opencontainers/runc") || strings.Contains(i.Path.Value, "opencontainers/cgroups") {
				users[filepath.Dir(name)] = true
			}
		}
		return nil
	}))
	assert.Equal(t, map[string]bool{"internal/wall": true}, users)
}
