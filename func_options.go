package sandbox

import (
	"time"

	"github.com/cellkit/sandbox/internal/spec"
)

// WithMessageLimit limits the encoded argument and result of a call of a function, each, to a
// number of bytes, up to 1 GiB: ErrMessageLimit. Streams and files do not count. The result is the
// inside's to make as large as that. Decoded, it may take at most eight times the limit, and 1 MiB,
// of memory: a result that would take more is not decoded, and is ErrMessageLimit too. Decoding
// ends when the call's context or timeout does. Types that decode themselves (UnmarshalCBOR,
// UnmarshalText, UnmarshalBinary) may take more, if they are made that way. Default, and 0: 16 MiB.
func WithMessageLimit(bytes int64) Option {
	return func(c *spec.Spec) { c.Function.MessageLimit = bytes }
}

// WithMaxCalls has each worker of a Func's Workers replaced when it has served n calls. With 1 each call has a fresh process, which
// was started ahead. Default, and 0: no limit.
func WithMaxCalls(n int) Option { return func(c *spec.Spec) { c.Function.MaxCalls = n } }

// WithMaxAge has each worker of a Func's Workers replaced before it serves a call at a greater age.
// Default, and 0: no limit.
func WithMaxAge(d time.Duration) Option { return func(c *spec.Spec) { c.Function.MaxAge = d } }
