package sandbox_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README's first example is compiled and run, as ExampleNew.
func TestReadmeExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```go\n")
	require.True(t, ok)
	shown, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	examples, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	indented := "\t" + strings.ReplaceAll(strings.TrimSpace(shown), "\n", "\n\t")
	require.Contains(t, string(examples), indented)
}

// The table of contents of docs/RATIONALE.md has every heading.
func TestRationaleContents(t *testing.T) {
	text, err := os.ReadFile("docs/RATIONALE.md")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if heading, ok := strings.CutPrefix(strings.TrimSpace(line), "## "); ok {
			require.Equal(t, 1, strings.Count(string(text), "- ["+heading+"](#"), heading)
		}
	}
}
