package cli

// What -json prints: one object, with names that stay as they are. Times are in nanoseconds, sizes in bytes.

import (
	"encoding/json"
	"io"

	"github.com/cellkit/sandbox"
)

func writeJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // nobody is left to be told of a closed pipe
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
