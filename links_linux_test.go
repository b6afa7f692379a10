package sandbox_test

import (
	"os/exec"
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
