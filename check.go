package sandbox

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/cellkit/sandbox/internal/fault"
)

// Feature is one thing that this package uses if it is available.
type Feature struct {
	// Name says what the feature is to the user of a sandbox, such as "memory limit".
	Name string
	// Required means that nothing runs without it.
	Required bool
	// Err is nil if the feature works here; otherwise it says why not.
	Err error
	// Detail says more about a feature that works.
	Detail string
	// Remedy says what to do about one that does not.
	Remedy string
}

// Report says what this machine can do for this process.
type Report struct{ Features []Feature }

// OK reports whether runs are possible.
func (r *Report) OK() bool {
	for _, f := range r.Features {
		if f.Required && f.Err != nil {
			return false
		}
	}
	return true
}

// String returns a table of the features, one per line.
func (r *Report) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FEATURE\tSUPPORTED\tDETAIL")
	for _, f := range r.Features {
		if f.Err == nil {
			fmt.Fprintf(w, "%s\tyes\t%s\n", f.Name, f.Detail)
			continue
		}
		no := "no"
		if f.Required {
			no = "NO (required)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, no, strings.ReplaceAll(fault.WithRemedy(f.Err, f.Remedy), "\n", "; "))
	}
	w.Flush()
	return b.String()
}

// Check tries every feature and reports, for each that does not work, why and what to do about it.
// It boots a cell and makes a run, and leaves the default cell as it is.
func Check(ctx context.Context) *Report { return &Report{check(ctx)} }
