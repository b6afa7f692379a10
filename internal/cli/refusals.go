package cli

// The output of -explain-refusals.

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/cellkit/sandbox"
)

// refusals collects what the filter of a run refuses.
type refusals struct {
	mu  sync.Mutex
	all []refused
}

type refused sandbox.Refusal

func explainRefusals(s *settings) {
	all := &refusals{}
	s.refused = all
	s.add(sandbox.WithRefusals(func(r sandbox.Refusal) {
		all.mu.Lock()
		defer all.mu.Unlock()
		all.all = append(all.all, refused(r))
	}))
}

func (r *refusals) list() []refused {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// remedy returns the flag that would let the call pass.
func (r refused) remedy() string {
	switch flag := flagName(r.Option); {
	case r.Capability != "":
		return flag + " " + strings.TrimPrefix(r.Capability, "CAP_")
	case r.Option == "WithSeccomp":
		return flag + " with a profile that allows it"
	default:
		return flag
	}
}

// text describes it in a line. The process has chosen its name.
func (r refused) text() string {
	rare := ""
	if r.Errno == syscall.ENOSYS {
		rare = " (most programs do without)"
	}
	return fmt.Sprintf("refused to %q: %s: %v%s; to allow it: %s", r.Comm, r.Call, r.Errno, rare, r.remedy())
}

// refusalJSON is sandbox.Refusal.
type refusalJSON struct {
	Call    string `json:"call"`
	Error   string `json:"error"`
	Process string `json:"process"` // as it calls itself
	Remedy  string `json:"remedy"`
}

func (r *refusals) json() (list []refusalJSON) {
	for _, r := range r.list() {
		list = append(list, refusalJSON{Call: r.Call, Error: r.Errno.Error(), Process: r.Comm, Remedy: r.remedy()})
	}
	return list
}
