package spec

import (
	"cmp"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Function is what options set that are only for functions. 0 is no limit.
type Function struct {
	Name         string // of the function; "" for commands
	Commanded    bool   // a command was set
	MessageLimit int64  // bytes, 0 for the default
	MaxCalls     int
	MaxAge       time.Duration
}

const (
	defaultMessage = 16 << 20
	maxMessage     = 1 << 30
)

// Message is the limit of messages in bytes.
func (f *Function) Message() int64 { return cmp.Or(f.MessageLimit, defaultMessage) }

func (f *Function) check() (errs []error) {
	for _, o := range []struct {
		name    string
		set, ok bool
		want    string
	}{
		{"WithMessageLimit", f.MessageLimit != 0, f.MessageLimit >= 0 && f.MessageLimit <= maxMessage, "a number of bytes up to 1 GiB"},
		{"WithMaxCalls", f.MaxCalls != 0, f.MaxCalls >= 0, "a positive number of calls"},
		{"WithMaxAge", f.MaxAge != 0, f.MaxAge >= 0, "a positive duration"},
	} {
		switch {
		case o.set && f.Name == "":
			errs = append(errs, fault.Option(o.name, "it is for functions: see NewFunc"))
		case !o.ok:
			errs = append(errs, fault.Option(o.name, "not %s", o.want))
		}
	}
	return errs
}
