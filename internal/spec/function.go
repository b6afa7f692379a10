package spec

import (
	"cmp"

	"github.com/cellkit/sandbox/internal/fault"
)

// Function is what options set that package function has besides those of a sandbox.
type Function struct {
	MessageLimit int64 // bytes, 0 for the default
}

const (
	defaultMessage = 16 << 20
	maxMessage     = 1 << 30
)

// Message is the limit of messages in bytes.
func (f Function) Message() int64 { return cmp.Or(f.MessageLimit, defaultMessage) }

func (f Function) check() (errs []error) {
	if f.MessageLimit < 0 || f.MessageLimit > maxMessage {
		errs = append(errs, fault.Option("function.MessageLimit", "%d is not a number of bytes up to 1 GiB", f.MessageLimit))
	}
	return errs
}
