package sandbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/host"
)

// The template of a root stays small if /sys has all that package host reads of one.
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
	c := &New(WithCommand("true")).config
	p, err := compile(c, m, shape{}, found{})
	require.NoError(t, err)
	require.Less(t, len(p.template.Image()), 1<<20)
	require.Less(t, p.template.Len(), 4000)
}

// Files with the same content are one file.
func TestSysSharesFiles(t *testing.T) {
	m := goldenMachine()
	m.Sys = []host.SysFile{{Path: "/sys/devices/system/cpu/online", Content: "0-1\n"}, {Path: "/sys/devices/system/cpu/present", Content: "0-1\n"}, {Path: "/sys/devices/system/cpu/cpu0/"}}
	p, err := compile(&New(WithCommand("true")).config, m, shape{}, found{})
	require.NoError(t, err)
	text := p.template.Explain()
	require.Contains(t, text, `linkat($`)
	require.Contains(t, text, `"devices/system/cpu/cpu0"`)
}
