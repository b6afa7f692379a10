package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFinishCountsEveryCheckOnce(t *testing.T) {
	tests := []struct {
		name   string
		events string
		exit   int
		want   counts
	}{
		{"a test", `{"Action":"run","Test":"A"}{"Action":"pass","Test":"A"}`, 0, counts{passed: 1}},
		{"a test with subtests", `{"Action":"run","Test":"A"}{"Action":"run","Test":"A/x"}{"Action":"run","Test":"A/y/z"}
			{"Action":"pass","Test":"A/x"}{"Action":"pass","Test":"A/y/z"}{"Action":"pass","Test":"A"}`, 0, counts{passed: 2}},
		{"a failed subtest", `{"Action":"run","Test":"A"}{"Action":"run","Test":"A/x"}{"Action":"run","Test":"A/y"}
			{"Action":"fail","Test":"A/x"}{"Action":"skip","Test":"A/y"}{"Action":"fail","Test":"A"}`, 1, counts{failed: 1, skipped: 1}},
		{"a failure beside good subtests", `{"Action":"run","Test":"A"}{"Action":"run","Test":"A/x"}
			{"Action":"pass","Test":"A/x"}{"Action":"fail","Test":"A"}`, 1, counts{passed: 1, failed: 1}},
		{"a panic in a subtest", `{"Action":"run","Test":"A"}{"Action":"run","Test":"A/x"}`, 2, counts{failed: 1}},
		{"a failure outside of any test", `{"Action":"run","Test":"A"}{"Action":"pass","Test":"A"}
			{"Action":"output","Output":"TestMain: no\n"}`, 1, counts{passed: 1, failed: 1}},
		{"a binary that never ended", `{"Action":"run","Test":"A"}{"Action":"pass","Test":"A"}`, -1, counts{passed: 1, failed: 1}},
		{"no tests", `{"Action":"start"}`, 0, counts{}},
		{"no events", `oops`, 0, counts{failed: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPackageResults()
			p.err = p.read(strings.NewReader(tt.events))
			got, _ := p.finish(tt.exit)
			assert.Equal(t, tt.want, got)
		})
	}
}

// TestRead covers everything from the output of suite.sh, as the guest sends it, to the report.
func TestRead(t *testing.T) {
	output := "\n##vmtest begin internal/x\n\x16=== RUN   TestA\n    x_test.go:3: wrong\n\x16--- FAIL: TestA (0.00s)\nFAIL\n\n" +
		"##vmtest end 1 internal/x\n\n##vmtest begin .\n\x16=== RUN   TestB\n\x16--- PASS: TestB (0.00s)\nkernel says no more"
	var out strings.Builder
	s := (&report{out: &out}).section("guest")
	err := s.read(t.Context(), strings.NewReader(output), make([]testPackage, 2))
	assert.ErrorContains(t, err, "only 1 of 2 packages")
	assert.Equal(t, counts{passed: 1, failed: 2}, s.total)
	assert.Contains(t, out.String(), "    x_test.go:3: wrong\n--- FAIL: TestA")
	assert.Contains(t, out.String(), "the output ends before the test binary does")
}

// TestSlow has the report name the tests that took longest, and none that took no time.
func TestSlow(t *testing.T) {
	output := "\n##vmtest begin .\n\x16=== RUN   TestA\n\x16--- PASS: TestA (0.10s)\n\x16=== RUN   TestB\n\x16=== RUN   TestB/x\n" +
		"\x16--- PASS: TestB/x (9.00s)\n\x16--- PASS: TestB (9.50s)\n\x16=== RUN   TestC\n\x16--- PASS: TestC (20.00s)\n\x16PASS\n\n##vmtest end 0 .\n"
	s := (&report{out: io.Discard}).section("guest")
	require.NoError(t, s.read(t.Context(), strings.NewReader(output), make([]testPackage, 1)))
	var out strings.Builder
	require.True(t, s.print(&out))
	require.Contains(t, out.String(), "\n    slowest: TestC 20s, TestB 10s\n")
}

// TestTriedAgain has tests fail that pass the next time, and failures that get no second try.
func TestTriedAgain(t *testing.T) {
	read := func(output string) *section {
		s := (&report{out: io.Discard}).section("guest")
		_ = s.read(t.Context(), strings.NewReader("\n##vmtest begin .\n"+output), make([]testPackage, 1))
		return s
	}
	const (
		good = "\x16=== RUN   TestA\n\x16--- PASS: TestA (0.00s)\n\x16PASS\n\n##vmtest end 0 .\n"
		bad  = "\x16=== RUN   TestA\n\x16=== RUN   TestA/x\n\x16--- FAIL: TestA/x (0.00s)\n\x16--- FAIL: TestA (0.00s)\n\x16FAIL\n\n##vmtest end 1 .\n"
	)
	s := read(bad)
	require.Equal(t, []string{"TestA"}, s.worthAnotherTry())
	s.triedAgain(read(bad))
	require.False(t, s.print(io.Discard))
	s.triedAgain(read("PASS\n\n##vmtest end 0 .\n"))
	require.False(t, s.print(io.Discard), "no test ran")
	s.triedAgain(read(good))
	var out strings.Builder
	require.True(t, s.print(&out))
	require.Contains(t, out.String(), "unsteady, passed when tried again: TestA\n")

	s = read("\x16=== RUN   TestA\n")
	s.broken(errors.New("the guest died"))
	s.bootedAgain(read(bad))
	require.False(t, s.print(io.Discard), "it failed in the other one")
	s.bootedAgain(read(good))
	out.Reset()
	require.True(t, s.print(&out))
	require.Contains(t, out.String(), "1 passed, 0 failed")
	require.Contains(t, out.String(), "unsteady, passed when tried again: all tests, as the guest died\n")

	for name, output := range map[string]string{
		"a panic":                 "\x16=== RUN   TestA\npanic: oops\n\n##vmtest end 2 .\n",
		"a guest that died":       "\x16=== RUN   TestA\n",
		"a guest that died later": strings.Replace(bad, "end 1 .", "", 1),
		"outside of any test":     "\x16=== RUN   TestA\n\x16--- PASS: TestA (0.00s)\n\x16PASS\nTestMain: a process is left\n\n##vmtest end 1 .\n",
		"four tests": strings.Replace(bad, "\x16FAIL\n", strings.Join([]string{"\x16--- FAIL: TestB (0.00s)", "\x16--- FAIL: TestC (0.00s)",
			"\x16--- FAIL: TestD (0.00s)", "\x16FAIL\n"}, "\n"), 1),
	} {
		require.Empty(t, read(output).worthAnotherTry(), name)
	}
	require.Empty(t, read(good).worthAnotherTry())
}

func TestSkipReason(t *testing.T) {
	p := newPackageResults()
	require.NoError(t, p.read(strings.NewReader(`{"Action":"run","Test":"A"}
		{"Action":"output","Test":"A","Output":"=== RUN   A\n"}
		{"Action":"output","Test":"A","Output":"    a_test.go:7: needs root\n"}
		{"Action":"output","Test":"A","Output":"--- SKIP: A (0.00s)\n"}
		{"Action":"skip","Test":"A"}`)))
	_, skips := p.finish(0)
	require.Len(t, skips, 1)
	assert.Equal(t, "a_test.go:7: needs root", skips[0].reason())
}

func TestReadFailsWhereTestsDidNotRun(t *testing.T) {
	packages := []testPackage{{dir: "."}}
	s := (&report{out: io.Discard}).section("host")
	assert.ErrorContains(t, s.read(t.Context(), strings.NewReader(""), packages), "0 of 1 packages")
	assert.ErrorContains(t, s.read(t.Context(), strings.NewReader(""), nil), "no tests ran")
}

func TestPrintFailsWithoutPass(t *testing.T) {
	assert.False(t, (&report{}).print(io.Discard))
}
