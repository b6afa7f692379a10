//go:build linux

package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/host"
)

// The template of a root stays small even if /sys has all that package host reads.
func TestSysOfALargeMachine(t *testing.T) {
	m := goldenMachine()
	for i := range 1024 {
		dir := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/", i)
		m.Sys = append(m.Sys, host.SysFile{Path: dir})
		for j := range 10 {
			if i < 64 {
				m.Sys = append(m.Sys, host.SysFile{Path: fmt.Sprint(dir, "topology/", j), Content: fmt.Sprint(i, j, strings.Repeat(",ffffffff", 32))})
			}
		}
	}
	c := describe(sandbox.WithCommand("true"))
	p, err := compile.New(c, m, compile.Shape{}, compile.Found{})
	require.NoError(t, err)
	require.Less(t, len(p.Template.Image()), 1<<20)
	require.Less(t, p.Template.Len(), 4000)
}

// Files with the same content are one file.
func TestSysSharesFiles(t *testing.T) {
	m := goldenMachine()
	m.Sys = []host.SysFile{{Path: "/sys/devices/system/cpu/online", Content: "0-1\n"}, {Path: "/sys/devices/system/cpu/present", Content: "0-1\n"}, {Path: "/sys/devices/system/cpu/cpu0/"}}
	p, err := compile.New(describe(sandbox.WithCommand("true")), m, compile.Shape{}, compile.Found{})
	require.NoError(t, err)
	text := p.Template.Explain()
	require.Contains(t, text, `linkat($`)
	require.Contains(t, text, `"devices/system/cpu/cpu0"`)
}
