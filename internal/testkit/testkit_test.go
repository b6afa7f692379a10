//go:build linux

package testkit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit/matrix"
)

func TestMain(m *testing.M) { Main(m) }

// A configuration is known to have a feature by its name or by what it is.
func TestKnownIn(t *testing.T) {
	for known, want := range map[string]string{
		"":                        "",
		"host docker":             "host docker",
		"ROOT":                    "host guest linux-5.10 systemd systemd-service linux-6.1 linux-newest",
		"ROOT-5.11":               "host guest systemd systemd-service linux-6.1 linux-newest",
		"ROOT-6.3 docker":         "host docker guest systemd systemd-service linux-newest",
		"USER":                    "host-user systemd-user linux-6.1-user",
		"USER-6.6":                "host-user systemd-user",
		"GUEST-6.6":               "guest systemd-user systemd systemd-service linux-newest",
		"HERE":                    "host host-user docker-default docker docker-cap docker-privileged",
		"linux-5.10 systemd-user": "systemd-user linux-5.10",
	} {
		var got []string
		for _, c := range matrix.Configurations {
			if knownIn(known, c) {
				got = append(got, c.Name)
			}
		}
		assert.Equal(t, strings.Fields(want), append([]string{}, got...), known)
	}
}

// The table of features names only configurations and groups that exist.
func TestFeatures(t *testing.T) {
	for name, f := range features {
		for _, known := range strings.Fields(f.known) {
			group, _, _ := strings.Cut(known, "-")
			_, isConfiguration := matrix.Named(known)
			assert.True(t, isConfiguration || groups[group] != nil, "%s: %s", name, known)
		}
	}
}

// Only tests import this package, no test skips by itself, and each helper program is named by who
// uses it.
func TestUse(t *testing.T) {
	const root, kit = "../..", "github.com/cellkit/sandbox/internal/testkit"
	files := 0
	named := map[[2]string]int{} // how often directories have texts
	helpers := map[[2]string]bool{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasPrefix(name, "internal/testkit/") {
			return err
		}
		files++
		src, err := os.ReadFile(path)
		require.NoError(t, err)
		file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
		require.NoError(t, err)
		// What is in execstd is linked into tests alone.
		isTest := strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "internal/execstd/")
		for _, i := range file.Imports {
			imported, _ := strconv.Unquote(i.Path.Value)
			isKit := imported == kit || strings.HasPrefix(imported, kit+"/")
			assert.False(t, isKit && !isTest && imported != kit+"/matrix", "%s imports %s", name, imported)
		}
		// Its tests of samples are about tests that skip.
		if isTest && name != "internal/execstd/shim/shim.go" && name != "sandboxtest/isolate_test.go" {
			assert.Empty(t, calls(file, "Skip", "Skipf", "SkipNow"), "%s: use testkit.Need", name)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if text, ok := n.(*ast.BasicLit); ok {
				named[[2]string{filepath.Dir(name), text.Value}]++
			}
			return true
		})
		for _, call := range calls(file, "AddHelper") {
			if text, ok := call.Args[0].(*ast.BasicLit); ok {
				helpers[[2]string{filepath.Dir(name), text.Value}] = true
			}
		}
		return nil
	}))
	require.Greater(t, files, 200)
	require.Greater(t, len(helpers), 50)
	for h := range helpers {
		assert.Greater(t, named[h], 1, "no test uses the helper %s", h)
	}
}

// calls returns the calls of what other packages, or values, have under one of the names.
func calls(file *ast.File, names ...string) (found []*ast.CallExpr) {
	ast.Inspect(file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if f, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains(names, f.Sel.Name) {
				found = append(found, call)
			}
		}
		return true
	})
	return found
}
