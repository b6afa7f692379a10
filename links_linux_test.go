package sandbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// TestNoCBOR requires that a program which only runs commands does not link what functions need.
func TestNoCBOR(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "time to build programs")
	for _, p := range []string{".", "./pool", "./cmd/sandbox"} {
		linked, err := exec.Command("go", "list", "-deps", p).Output()
		require.NoError(t, err)
		require.Contains(t, string(linked), "github.com/cellkit/sandbox\n")
		require.NotContains(t, string(linked), "fxamacker/cbor", p)
	}
}

// TestImportedSize requires that importing the module does not make a program much larger than it
// must: libcontainer and containerd/cgroups add 6.8 MB, what initialization reaches of them and of
// this module 1.7 MB, and that of net/http 1.4 MB.
func TestImportedSize(t *testing.T) {
	testkit.Need(t, "root")
	testkit.Need(t, "time to build programs")
	dir := t.TempDir()
	size := func(name, imports string) int64 {
		source, program := filepath.Join(dir, name+".go"), filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(source, []byte("package main\n\n"+imports+"\n\nfunc main() {}\n"), 0o600))
		out, err := exec.Command("go", "build", "-o", program, source).CombinedOutput()
		require.NoError(t, err, "%s", out)
		info, err := os.Stat(program)
		require.NoError(t, err)
		return info.Size()
	}
	added := size("imported", `import _ "github.com/cellkit/sandbox"`) - size("none", "")
	t.Logf("%.2f MB", float64(added)/1e6)
	require.Less(t, added, int64(10_900_000))
}
