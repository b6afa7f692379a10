//go:build linux

package seccomp

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

var update = flag.Bool("update", false, "write table.txt")

// TestTableIsCurrent requires that table.txt has what the required version of golang.org/x/sys has.
func TestTableIsCurrent(t *testing.T) {
	testkit.Need(t, "time to build programs") // for the module's files
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	require.NoError(t, err)
	sources := filepath.Join(strings.TrimSpace(string(out)), "unix")
	constant := regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s+= (\d+)$`)
	numbers := map[string]map[string]string{}
	names := map[string]struct{}{}
	for _, goarch := range []string{"amd64", "arm64", "386", "arm"} {
		source, err := os.ReadFile(filepath.Join(sources, "zsysnum_linux_"+goarch+".go"))
		require.NoError(t, err)
		numbers[goarch] = map[string]string{}
		for _, m := range constant.FindAllStringSubmatch(string(source), -1) {
			name := strings.ToLower(m[1])
			if name == "arch_specific_syscall" || name == "syscall_mask" {
				continue // no call, but the start of a range for other architectures, and a mask
			}
			numbers[goarch][name] = m[2]
			names[name] = struct{}{}
		}
	}
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Fprintln(&lines, name, cmp.Or(numbers["amd64"][name], "-"), cmp.Or(numbers["arm64"][name], "-"))
	}
	if *update {
		require.NoError(t, os.WriteFile("table.txt", []byte(lines.String()), 0o644))
	}
	written, err := os.ReadFile("table.txt")
	require.NoError(t, err)
	require.Equal(t, lines.String(), string(written), "run go test ./internal/seccomp -run TestTableIsCurrent -update")
}
