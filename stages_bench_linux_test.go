package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The stages of a run, each by itself, for benchstat.

func BenchmarkCompile(b *testing.B) {
	c := New(WithCommand("true"), WithBind("/usr/lib", "/tmp/lib")).config
	b.ReportAllocs()
	for b.Loop() {
		_, err := compile(&c, thisMachine(), shape{joins: 6}, found{})
		require.NoError(b, err)
	}
}

func BenchmarkCompileCommand(b *testing.B) {
	c := New(WithCommand("true", "with", "arguments")).config
	b.ReportAllocs()
	for b.Loop() {
		_, err := compileCommand(&c, thisMachine())
		require.NoError(b, err)
	}
}

// BenchmarkDerive is what a service pays that derives a sandbox for each request.
func BenchmarkDerive(b *testing.B) {
	base := New(WithMemory(64*MiB), WithPrepared(1))
	b.ReportAllocs()
	for b.Loop() {
		s := base.With(WithCommand("true", "with", "arguments"))
		require.NoError(b, s.check())
		_, err := s.command.program(&s.config)
		require.NoError(b, err)
	}
}

// stages takes b's runs apart: what is not the stage asked for is not measured.
func stages(b *testing.B, s *Sandbox, stage string) {
	_, err := s.Run(b.Context())
	require.NoError(b, err)
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
		if s.prepared != nil {
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

func BenchmarkStart(b *testing.B) { stages(b, New(WithCommand("true")), "start") }
func BenchmarkStartPrepared(b *testing.B) {
	stages(b, New(WithCommand("true"), WithPrepared(1)), "start")
}

// BenchmarkEnd is from the start of a command that ends at once to the end of its Wait.
func BenchmarkEnd(b *testing.B) { stages(b, New(WithCommand("true")), "end") }
