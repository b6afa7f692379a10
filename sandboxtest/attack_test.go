//go:build linux

package sandboxtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
)

// counters is a file of n bytes of counters whose header claims tables of the given size.
func counters(n int, table uint32) *fstest.MapFile {
	b := make([]byte, n)
	copy(b, "\x00cwm")
	binary.LittleEndian.PutUint32(b[40:], table)
	return &fstest.MapFile{Data: b}
}

// TestAttackCoverage has a test leave, instead of its counters, what would fill the disk or the
// memory of the host.
func TestAttackCoverage(t *testing.T) {
	t.Parallel()
	name := func(i int) string { return fmt.Sprintf("covcounters.%032x.2.%d", 7, i) }
	many := fstest.MapFS{}
	for i := range maxCounterFiles + 1 {
		many[name(i)] = counters(100, 0)
	}
	large := fstest.MapFS{name(1): counters(maxCounters/2, 0), name(2): counters(maxCounters/2+1, 0)}
	for what, test := range map[string]struct {
		files fstest.MapFS
		want  string
		left  int
	}{
		"counters":         {fstest.MapFS{name(1): counters(100, 52), name(2): counters(48, 0)}, "", 2},
		"other names":      {fstest.MapFS{"covmeta.1": counters(100, 0), "covcounters.x.1.2": counters(100, 0), "x": counters(90, 0), name(1) + "x": counters(100, 0)}, "", 0},
		"too many":         {many, "more than 64 files", maxCounterFiles},
		"too large":        {large, "bytes of counters", 1},
		"a table too long": {fstest.MapFS{name(1): counters(100, 53)}, "no counters", 0},
		"a huge table":     {fstest.MapFS{name(1): counters(100, 1<<32-1)}, "no counters", 0},
		"a hole":           {fstest.MapFS{name(1): &fstest.MapFile{Data: make([]byte, 1000)}}, "no counters", 0},
		"a link":           {fstest.MapFS{name(1): &fstest.MapFile{Data: []byte("/etc/passwd"), Mode: os.ModeSymlink}}, "", 0},
	} {
		to := t.TempDir()
		err := copyCounters(test.files, to)
		if test.want == "" {
			require.NoError(t, err, what)
		} else {
			require.ErrorContains(t, err, test.want, what)
		}
		left, err := filepath.Glob(filepath.Join(to, "*"))
		require.NoError(t, err)
		require.Len(t, left, test.left, what)
	}
}

// TestAttackEvents has a test's process report without end. That costs little, and the test fails.
func TestAttackEvents(t *testing.T) {
	t.Parallel()
	run := "\x16=== RUN   TestX"
	for what, line := range map[string]func(i int) string{
		"subtests":           func(i int) string { return fmt.Sprintf("%s/%d\n", run, i) },
		"attributes":         func(int) string { return "\x16=== ATTR  TestX k v\n" },
		"output here, there": func(i int) string { return fmt.Sprintf("\x16=== NAME  TestX%s\nx", []string{"", "/a"}[i%2]) },
		"deep names":         func(i int) string { return fmt.Sprintf("%s/%d%s\n", run, i, strings.Repeat("/a", 30_000)) },
		"long names":         func(i int) string { return fmt.Sprintf("%s/%d%s\n", run, i, strings.Repeat("a", 60_000)) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newParser("TestX")
			text := bytes.NewBufferString(run + "\n" + run + "/a\n\x16=== ATTR  TestX/a k v\n")
			for i := 0; text.Len() < 16<<20; i++ {
				text.WriteString(line(i))
			}
			text.WriteString("\x16--- PASS: TestX (0.00s)\n\x16PASS\n")
			begun := time.Now()
			_, _ = p.Write(text.Bytes())
			t.Log(time.Since(begun))
			r := p.conclude(nil)
			require.LessOrEqual(t, len(p.results)+len(r.items), 2*maxItems+2)
			if what == "output here, there" && r.status == passed {
				return // each test's pieces are joined
			}
			require.Equal(t, failed, r.status)
			require.Contains(t, r.problem, "it reported more than")
		})
	}
}
