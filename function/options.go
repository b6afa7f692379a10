package function

import (
	"slices"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Option changes one thing of the processes that serve a function. Each sandbox.Option is one,
// except WithCommand, which is an *sandbox.OptionError: the function is the command.
type Option interface {
	// Apply is for the packages of this module.
	Apply(*spec.Spec)
}

// Options combines several options of a sandbox into one of a function, for options that are in a
// slice.
func Options(opts ...sandbox.Option) Option {
	opts = slices.Clone(opts)
	return option(func(c *spec.Spec) {
		for _, o := range opts {
			o.Apply(c)
		}
	})
}

// option is an Option that a sandbox does not take.
type option func(*spec.Spec)

func (o option) Apply(c *spec.Spec) { o(c) }

// MessageLimit limits the encoded argument and result of a call of a function, each, to a number of
// bytes, up to 1 GiB: ErrMessageLimit. Streams and files do not count. Code in the function's
// process can make the result as large as that. Decoded, it may take at most eight times the limit,
// and 1 MiB, of memory: a result that would take more is not decoded, and the error is
// ErrMessageLimit too. Decoding ends when the call's context or timeout does. Types that decode
// themselves (UnmarshalCBOR, UnmarshalText, UnmarshalBinary) may take more, if they are written
// that way. Default, and 0: 16 MiB.
func MessageLimit(bytes int64) Option {
	return option(func(c *spec.Spec) { c.Function.MessageLimit = bytes })
}

// WorkersOption changes one thing of Workers.
type WorkersOption func(*workersConfig)

// workersConfig is what options of Workers set. 0 means no limit.
type workersConfig struct {
	maxCalls int
	maxAge   time.Duration
}

// MaxCalls replaces each worker when it has served n calls. With 1 each call has a fresh process,
// which was started ahead. Default, and 0: no limit.
func MaxCalls(n int) WorkersOption { return func(c *workersConfig) { c.maxCalls = n } }

// MaxAge replaces each worker that has reached the age before it serves another call. Default, and
// 0: no limit.
func MaxAge(d time.Duration) WorkersOption { return func(c *workersConfig) { c.maxAge = d } }

func (c *workersConfig) check() (errs []error) {
	if c.maxCalls < 0 {
		errs = append(errs, fault.Option("function.MaxCalls", "%d is not a positive number of calls", c.maxCalls))
	}
	if c.maxAge < 0 {
		errs = append(errs, fault.Option("function.MaxAge", "%v is not a positive duration", c.maxAge))
	}
	return errs
}
