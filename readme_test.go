package sandbox_test

import (
	"os"
	"path/filepath"
	"regexp"
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

// Paths that the documents give to options are absolute, as the options want them.
func TestDocumentedPaths(t *testing.T) {
	given := regexp.MustCompile(`(?:WithBind|WithReadOnlyBind|WithTmpfs|WithScratch|WithReadOnlyScratch|WithFS|WithFile|WithDir|DirRootfs|LayersRootfs)\(("[^"]*")(?:, ("[^"]*"))?`)
	docs, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	found := 0
	for _, doc := range append(docs, "README.md", "SECURITY.md") {
		text, err := os.ReadFile(doc)
		require.NoError(t, err)
		for _, option := range given.FindAllStringSubmatch(string(text), -1) {
			for _, path := range option[1:] {
				require.True(t, path == "" || strings.HasPrefix(path, `"/`), "%s: %s", doc, option[0])
			}
			found++
		}
	}
	require.Positive(t, found)
}
