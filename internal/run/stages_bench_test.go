//go:build linux

package run_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/run"
)

// The stages of a run, each by itself, for benchstat.

func BenchmarkCompile(b *testing.B) {
	c := describe(sandbox.WithCommand("true"), sandbox.WithBind("/usr/lib", "/tmp/lib"))
	b.ReportAllocs()
	for b.Loop() {
		_, err := compile.New(&c, engine.Machine(), compile.Shape{Joins: 6}, compile.Found{})
		require.NoError(b, err)
	}
}

func BenchmarkCompileCommand(b *testing.B) {
	c := describe(sandbox.WithCommand("true", "with", "arguments"))
	b.ReportAllocs()
	for b.Loop() {
		_, err := compile.Command(&c, engine.Machine())
		require.NoError(b, err)
	}
}

// BenchmarkDerive measures what a service pays that derives a sandbox for each request.
func BenchmarkDerive(b *testing.B) {
	base := made(sandbox.WithMemory(64*sandbox.MiB), sandbox.WithPrepared(1))
	b.ReportAllocs()
	for b.Loop() {
		s := derive(base, sandbox.WithCommand("true", "with", "arguments"))
		require.NoError(b, s.Check())
		_, err := s.Command()
		require.NoError(b, err)
	}
}

// stages takes b's runs apart: what is not the stage asked for is not measured.
func stages(b *testing.B, s *run.Sandbox, stage string) {
	require.NoError(b, runOnce(b.Context(), s))
	timed := func(on bool) {
		if on {
			b.StartTimer()
		} else {
			b.StopTimer()
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		if s.Prepares() {
			require.NoError(b, s.Prepare(b.Context()))
		}
		timed(stage == "start")
		p, err := s.Start(b.Context())
		timed(stage == "end")
		require.NoError(b, err)
		_, err = p.Wait()
		timed(true)
		require.NoError(b, err)
	}
}

func BenchmarkStart(b *testing.B) { stages(b, made(sandbox.WithCommand("true")), "start") }
func BenchmarkStartPrepared(b *testing.B) {
	stages(b, made(sandbox.WithCommand("true"), sandbox.WithPrepared(1)), "start")
}

// BenchmarkEnd measures the time from the start of a command that ends at once to the end of its
// Wait.
func BenchmarkEnd(b *testing.B) { stages(b, made(sandbox.WithCommand("true")), "end") }
