//go:build linux

package run

import (
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
)

func TestSetupErrorOfExec(t *testing.T) {
	failed := func(errno unix.Errno, memory int64) error {
		call := program.Call{Number: unix.SYS_EXECVE, Purpose: program.Exec, Stage: "exec job", Text: `execve("/bin/job", ["job"], [])`}
		c := described("job")
		c.Limits.Memory = memory
		return setupError(&cell.CallError{Call: call, Errno: errno}, c)
	}
	for _, test := range []struct {
		err  error
		is   []error
		text string
	}{
		{failed(unix.ENOENT, 0), []error{fs.ErrNotExist}, "sandbox: exec: exec job: no such file or directory (the command and its interpreter must be in the run's root: WithReadOnlyBind shows files of the host there)"},
		{failed(unix.EACCES, 1<<20), []error{fs.ErrPermission}, "sandbox: exec: exec job: permission denied (the command must be a program that the run's user may execute)"},
		{failed(unix.ENOEXEC, 0), nil, "sandbox: exec: exec job: exec format error (a script must begin with its interpreter, as in #!/bin/sh, and a program must be one for linux/" + runtime.GOARCH + ")"},
		{failed(unix.ENOMEM, 0), []error{unix.ENOMEM}, "sandbox: exec: exec job: cannot allocate memory"},
		{failed(unix.ENOMEM, 1<<20), []error{unix.ENOMEM, fault.ErrOutOfMemory},
			"sandbox: exec: exec job: out of memory (cannot allocate memory) (raise WithMemory)"},
	} {
		require.EqualError(t, test.err, test.text)
		for _, sentinel := range []error{fs.ErrNotExist, fs.ErrPermission, unix.ENOMEM, fault.ErrOutOfMemory} {
			require.Equal(t, slices.Contains(test.is, sentinel), errors.Is(test.err, sentinel), "%v: %v", test.text, sentinel)
		}
	}
	require.ErrorContains(t, failed(unix.E2BIG, 0), "WithCommand and WithEnv are too large")
}

// TestSetupErrorOfOwnLimits has what this process lacks, wherever it was missed.
func TestSetupErrorOfOwnLimits(t *testing.T) {
	full := &fault.SetupError{Stage: "pidfd_open", Err: unix.EMFILE}
	require.ErrorContains(t, withOwnHint(full), "too many open files (raise this process's limit of open files")
	require.Empty(t, full.Hint, "the error may be that of others, too")
	require.ErrorContains(t, withOwnHint(&fault.SetupError{Err: unix.ENFILE}), "fs.file-max")
	for _, other := range []error{unix.EMFILE, &fault.SetupError{Stage: "x", Err: unix.EMFILE, Hint: "y"}} {
		require.Equal(t, other, withOwnHint(other))
	}
}

func TestForgottenPlans(t *testing.T) {
	e := NewEngine()
	s := e.New(*described("true"))
	before, err := s.plans.plan(e.now(&s.Spec), s.Spec, compile.Shape{})
	require.NoError(t, err)
	same, err := s.plans.plan(e.now(&s.Spec), s.Spec, compile.Shape{})
	require.NoError(t, err)
	require.Same(t, before, same)
	other := s.Spec.Clone()
	other.Limits.Memory = 1 << 20
	s.With(other).plans.forget()
	again, err := s.plans.plan(e.now(&s.Spec), s.Spec, compile.Shape{})
	require.NoError(t, err)
	require.NotSame(t, before, again)
}
