package cli

// The output of -json: one object, or of "sandbox ps" an array of such, whose names don't change.
// Times are in nanoseconds, sizes in bytes.

import (
	"encoding/json"
	"io"
	"reflect"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
)

func writeJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // fails on a closed pipe, where nobody reads an error either
}

// holderJSON is a live run with a name.
type holderJSON struct {
	Name string `json:"name"`
	PID  int    `json:"pid"` // of the process that holds it
}

type featureJSON struct {
	Name      string `json:"name"`
	Required  bool   `json:"required"`
	Supported bool   `json:"supported"`
	Detail    string `json:"detail,omitempty"`
	Error     string `json:"error,omitempty"`
	Remedy    string `json:"remedy,omitempty"`
}

type reportJSON struct {
	OK       bool          `json:"ok"`
	Features []featureJSON `json:"features"`
}

func reportOf(r *sandbox.Report) reportJSON {
	out := reportJSON{OK: r.OK(), Features: []featureJSON{}}
	for _, f := range r.Features {
		j := featureJSON{Name: f.Name, Required: f.Required, Supported: f.Err == nil, Detail: f.Detail}
		if f.Err != nil {
			j.Error, j.Remedy = f.Err.Error(), f.Remedy
		}
		out.Features = append(out.Features, j)
	}
	return out
}

// outcomeJSON is how a run ended, or why there was none.
type outcomeJSON struct {
	Status int    `json:"status"`          // exit status of this program
	Error  string `json:"error,omitempty"` // why it is not the command's own

	// Only for a run that was started.
	Reason   string     `json:"reason,omitempty"` // as sandbox.Reason says it: "exited", "timed out", "out of memory" ...
	ExitCode *int       `json:"exit_code,omitempty"`
	Signal   int        `json:"signal,omitempty"`
	Usage    *usageJSON `json:"usage,omitempty"`

	Refusals []refusalJSON `json:"refusals,omitempty"` // with -explain-refusals
	Denied   []denial      `json:"denied,omitempty"`   // with -allow
}

// usageJSON is sandbox.Usage.
type usageJSON struct {
	Wall        time.Duration `json:"wall_ns"`
	UserCPU     time.Duration `json:"user_cpu_ns"`
	SystemCPU   time.Duration `json:"system_cpu_ns"`
	Throttled   time.Duration `json:"throttled_ns"`
	MemoryPeak  uint64        `json:"memory_peak_bytes"`
	ReadBytes   uint64        `json:"read_bytes"`
	WriteBytes  uint64        `json:"write_bytes"`
	PIDsPeak    uint64        `json:"pids_peak"`
	PIDsRefused uint64        `json:"pids_refused"`
	OOMKills    uint64        `json:"oom_kills"`
	Uncounted   []string      `json:"uncounted"` // those of these fields that this machine does not count
}

func outcomeOf(r *sandbox.Result, status int, reason error, withUsage bool) outcomeJSON {
	out := outcomeJSON{Status: status}
	if reason != nil {
		out.Error = reason.Error()
	}
	if r == nil {
		return out
	}
	out.Reason, out.ExitCode, out.Signal = r.Reason.String(), &r.ExitCode, int(r.Signal)
	if u := r.Usage; withUsage {
		out.Usage = &usageJSON{
			Wall: u.Wall, UserCPU: u.UserCPU, SystemCPU: u.SystemCPU, Throttled: u.Throttled, MemoryPeak: u.MemoryPeak,
			ReadBytes: u.ReadBytes, WriteBytes: u.WriteBytes, PIDsPeak: u.PIDsPeak, PIDsRefused: u.PIDsRefused, OOMKills: u.OOMKills,
			Uncounted: []string{},
		}
		for _, name := range u.Uncounted {
			out.Usage.Uncounted = append(out.Usage.Uncounted, usageNames()[name])
		}
	}
	return out
}

// usageNames maps the fields of sandbox.Usage to the names in usageJSON.
var usageNames = sync.OnceValue(func() map[string]string {
	names := map[string]string{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[usageJSON]()) {
		names[f.Name] = f.Tag.Get("json")
	}
	return names
})
