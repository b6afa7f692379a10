package sandbox

import "time"

// funcConfig is what options set that are only for functions.
type funcConfig struct {
	name      string // of the function; "" for commands
	commanded bool   // WithCommand was set
	message   *int64
	maxCalls  *int
	maxAge    *time.Duration
}

const defaultMessageLimit = 16 * MiB

// WithMessageLimit limits the encoded argument and result of a call of a function, each, to a
// number of bytes, up to 1 GiB: ErrMessageLimit. Streams and files do not count. The result is the
// inside's to make as large as that. Decoded, it may take at most eight times the limit, and 1 MiB,
// of memory: a result that would take more is not decoded, and is ErrMessageLimit too. Decoding
// ends when the call's context or timeout does. Types that decode themselves (UnmarshalCBOR,
// UnmarshalText, UnmarshalBinary) may take more, if they are made that way. Default, and 0: 16 MiB.
func WithMessageLimit(bytes int64) Option { return func(c *config) { c.fn.message = limit(bytes) } }

// WithMaxCalls has each worker of a Func's Workers replaced when it has served n calls. With 1 each call has a fresh process, which
// was started ahead. Default, and 0: no limit.
func WithMaxCalls(n int) Option { return func(c *config) { c.fn.maxCalls = limit(n) } }

// WithMaxAge has each worker of a Func's Workers replaced before it serves a call at a greater age.
// Default, and 0: no limit.
func WithMaxAge(d time.Duration) Option { return func(c *config) { c.fn.maxAge = limit(d) } }

func (f *funcConfig) limit() int64 {
	if f.message == nil {
		return defaultMessageLimit
	}
	return *f.message
}

func (f *funcConfig) check() (errs []error) {
	for _, o := range []struct {
		name    string
		set, ok bool
		want    string
	}{
		{"WithMessageLimit", f.message != nil, f.message == nil || *f.message > 0 && *f.message <= GiB, "a number of bytes up to 1 GiB"},
		{"WithMaxCalls", f.maxCalls != nil, f.maxCalls == nil || *f.maxCalls > 0, "a positive number of calls"},
		{"WithMaxAge", f.maxAge != nil, f.maxAge == nil || *f.maxAge > 0, "a positive duration"},
	} {
		switch {
		case o.set && f.name == "":
			errs = append(errs, optionError(o.name, "it is for functions: see NewFunc"))
		case !o.ok:
			errs = append(errs, optionError(o.name, "not %s", o.want))
		}
	}
	return errs
}
