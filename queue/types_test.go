//go:build linux

package queue

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// What submitters may say, and what is decoded of it, is these fields and no others: none of them
// is a right, or a thing of a worker's machine, which only the sandbox of the worker's pool and the
// options of workers have. A field that is added here is a decision.
func TestWhatSubmittersSay(t *testing.T) {
	fields := func(of any) (names []string) {
		for f := range reflect.TypeOf(of).Fields() {
			names = append(names, f.Name)
		}
		return slices.Sorted(slices.Values(names))
	}
	for _, of := range []struct {
		is    any
		words []string
	}{
		{Task{}, []string{"Class", "Command", "Deadline", "Delay", "Dir", "Env", "Inputs", "Key", "Limits", "Outputs", "Priority", "Retry", "Stdin", "Tenant"}},
		{taskRecord{}, []string{"Call", "Command", "Deadline", "Dir", "Env", "Inputs", "Limits", "NotBefore", "Outputs", "Replica", "Retry", "Stdin", "Submitted", "Version"}},
		{Limits{}, []string{"CPUTime", "CPUs", "Files", "Memory", "Output", "PIDs", "Timeout"}},
		{Service{}, []string{"Batch", "Health", "Name", "Port", "Replicas", "Task"}},
		{callRecord{}, []string{"Build", "Func"}},
		{replicaRecord{}, []string{"Health", "Port", "Service"}},
		{serviceRecord{}, []string{"Batch", "Class", "Definition", "IDs", "Old", "Route", "Task", "Version"}},
	} {
		require.Equal(t, of.words, fields(of.is), "%T", of.is)
	}
}
