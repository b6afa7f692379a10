//go:build linux

package limits

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every limit goes up, down, away and comes back, in one step each.
func TestUpdate(t *testing.T) {
	loop := IO{Major: 7, ReadBytes: mib}
	first := Spec{Memory: 64 * mib, CPUs: 0.5, CPUWeight: 50, CPUSet: "0", PIDs: 10, IO: []IO{loop}}
	cell := testCell(t, first)
	g, err := cell.Create("run", first)
	require.NoError(t, err)
	steps := []Spec{
		{Memory: 256 * mib, CPUs: 1, CPUWeight: 500, CPUSet: "0", PIDs: 100, IO: []IO{{Major: 7, WriteOps: 5}}},
		{IO: []IO{{Major: 7}}},
		{Memory: 32 * mib, CPUs: 0.1, PIDs: 1, IO: []IO{loop}},
		{Memory: 16 * mib, CPUSet: "0", IO: []IO{loop}},
		first,
	}
	if cell.swap {
		steps[0].Swap, steps[2].Swap = mib, 100*mib
	}
	from := first
	for _, to := range steps {
		require.NoError(t, cell.Update(g, from, to), "%+v", to)
		for _, s := range cell.settings(to, to.IO) {
			have := strings.Join(readWords(cell.fileOf(g, s)), " ")
			switch {
			// As the one above, or the largest number.
			case s.value == "" || s.unlimited:
			case s.device == "":
				assert.Equal(t, s.value, have, s.file)
			case strings.Trim(s.value, "0rwbiops=max ") == "":
				assert.NotContains(t, have, s.device, s.file)
			default:
				assert.Equal(t, s.device+" "+s.value, have, s.file)
			}
		}
		from = to
	}
	all := func() (now []string) {
		for _, s := range cell.settings(from, from.IO) {
			now = append(now, s.file+": "+strings.Join(readWords(cell.fileOf(g, s)), " "))
		}
		return now
	}
	before := all()
	to := Spec{Memory: mib, CPUs: 1, CPUSet: "0"}
	// A device that is not there.
	to.IO = []IO{{Major: 7, ReadBytes: 5}, {Major: 4000, ReadBytes: 1}}
	assert.ErrorContains(t, cell.Update(g, from, to), "WithIO")
	assert.Equal(t, before, all(), "all or nothing")
}
