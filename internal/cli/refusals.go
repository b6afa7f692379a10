package cli

// The output of -explain-refusals.

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/cellkit/sandbox"
)

// refusals collects what a run was refused, and did not find.
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

// remedy returns the flag with which it would go well, "" if there is none.
func (r refused) remedy() string {
	switch flag := flagName(r.Option); {
	case r.Option == "":
		return ""
	case r.Capability != "":
		return flag + " " + strings.TrimPrefix(r.Capability, "CAP_")
	case r.Option == "WithSeccomp":
		return flag + " with a profile that allows it"
	case r.Option == "WithReadOnlyBind":
		return flag + " " + quoted(r.Path)
	case r.Option == "WithBind":
		return flag + " in place of what is there"
	case r.Option == "WithWritableRoot":
		return flag + " SIZE"
	default:
		return flag
	}
}

// text describes it in a line. The process has chosen its name, and the path.
func (r refused) text() string {
	what, to := "refused", "to allow it"
	switch {
	case r.Path != "" && r.Errno == syscall.ENOENT:
		what, to = "missing", "to show it"
	case r.Path != "" && r.Errno == syscall.EROFS:
		what, to = "read-only", "to change it"
	case r.Path != "":
		what = "denied"
	}
	text := fmt.Sprintf("%s to %q: ", what, r.Comm)
	switch {
	case r.Path != "":
		text += fmt.Sprintf("%s (%s)", quoted(r.Path), r.Call)
	case r.Errno == syscall.ENOSYS:
		text += fmt.Sprintf("%s: %v (most programs do without)", r.Call, r.Errno)
	default:
		text += fmt.Sprintf("%s: %v", r.Call, r.Errno)
	}
	if remedy := r.remedy(); remedy != "" {
		text += "; " + to + ": " + remedy
	}
	return text
}

// quoted returns a path as a shell takes it, and in quotes if a terminal might not show it as it
// is.
func quoted(path string) string {
	if strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\"'`$\\*?[](){}<>|&;!#~", c) }) {
		return strconv.Quote(path)
	}
	return path
}

// refusalJSON is sandbox.Refusal.
type refusalJSON struct {
	Call    string `json:"call"`
	Path    string `json:"path,omitempty"`
	Error   string `json:"error"`
	Process string `json:"process"` // as it calls itself
	Remedy  string `json:"remedy,omitempty"`
}

func (r *refusals) json() (list []refusalJSON) {
	for _, r := range r.list() {
		list = append(list, refusalJSON{Call: r.Call, Path: r.Path, Error: r.Errno.Error(), Process: r.Comm, Remedy: r.remedy()})
	}
	return list
}
