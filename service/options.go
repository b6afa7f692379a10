package service

import (
	"slices"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// Option changes one thing of a service.
type Option func(*config)

type config struct {
	ports        []int
	ready        []Check
	startTimeout time.Duration

	health   []Check
	every    time.Duration
	failures int

	with     []sandbox.Option
	restarts int
	scale    int
	goesOn   bool // ending well is a failure, too
	after    []string
	volumes  []volume
	logLimit int
	observe  []func(Event)
	fails    func(error) // called when an instance fails for good, before others can see it
}

// With adds options to the service's sandbox, after those that it has. Several calls add up.
func With(opts ...sandbox.Option) Option {
	return func(c *config) { c.with = append(slices.Clip(c.with), opts...) }
}

// Port publishes a TCP port of the service at a port of 127.0.0.1 that is free, which Instance.Addr
// returns and which stays the same through restarts. The service must listen there on 0.0.0.0.
// Several calls add up. For UDP and other addresses the sandbox has sandbox.WithPublish.
func Port(port int) Option {
	return func(c *config) { c.ports = append(slices.Clip(c.ports), port) }
}

// Ready sets when the service is ready: when each of the checks was met once. Several calls add up.
// Log and Exits are noticed at once; other checks are tried again, in the order in which they were
// given, after a sixteenth of the time that the start has taken so far, 1 to 100 ms, or later if
// they take long themselves.
// Default: when it listens on all ports of Port, or, if there are none, as soon as its command is
// executed.
func Ready(checks ...Check) Option {
	return func(c *config) { c.ready = append(slices.Clip(c.ready), checks...) }
}

// StartTimeout limits how long the service, and each restart of it, takes until it is ready. One
// that takes longer has failed. Default: a minute.
func StartTimeout(d time.Duration) Option { return func(c *config) { c.startTimeout = d } }

// Health has a service that is ready checked again and again, with a pause between. After the given
// number of failures in a row, 1 at least, it has failed: it is ended. A check that takes longer
// than 30 s counts as a failure. Default: it fails only by its end.
func Health(pause time.Duration, failures int, checks ...Check) Option {
	return func(c *config) { c.every, c.failures, c.health = pause, failures, checks }
}

// Restart starts a service that has failed again, n times in a row at most, after a pause of 100
// ms, which doubles each time, up to 10 s. Once it has been ready for 10 s, counting begins anew.
// What could not even be set up when it was started first, for a limit that can't be enforced or a
// port in use, is not tried again. An instance that exits with status 0 after it was ready has not
// failed. The sandbox's volumes and Addr stay, all else is new. Default: 0.
func Restart(n int) Option { return func(c *config) { c.restarts = n } }

// RestartEnded has a service that exits with status 0, without being asked to, fail by that, so
// that Restart starts it again. Exits is not met then.
func RestartEnded() Option { return func(c *config) { c.goesOn = true } }

// After starts the service in its group once those with the given names are ready, and ends it
// before them. Several calls add up. It has no effect on a service that is started alone.
func After(names ...string) Option {
	return func(c *config) { c.after = append(slices.Clip(c.after), names...) }
}

// LogLimit sets how much of the service's output is kept, in bytes, 64 more for each line; the
// oldest lines are given up. Default: 1 MiB.
func LogLimit(bytes int) Option { return func(c *config) { c.logLimit = bytes } }

// Observe calls f for each event of an instance, one after the other. The instance waits for it, so
// f must not call Close. Several calls add up. Default: none.
func Observe(f func(Event)) Option {
	return func(c *config) {
		if f != nil {
			c.observe = append(slices.Clip(c.observe), f)
		}
	}
}

// report calls those of Observe.
func (c *config) report(e Event) {
	for _, observe := range c.observe {
		observe(e)
	}
}

// prepares reports that something is prepared.
func (c *config) prepares(e Event) {
	e.State, e.Time = Preparing, time.Now()
	c.report(e)
}

func (c *config) check() (errs []error) {
	wrong := func(option, format string, args ...any) {
		errs = append(errs, fault.Option("service."+option, format, args...))
	}
	for n, p := range c.ports {
		switch {
		case p < 1 || p > 65535:
			wrong("Port", "%d: ports go from 1 to 65535", p)
		case slices.Contains(c.ports[:n], p):
			wrong("Port", "%d is given twice", p)
		}
	}
	if c.startTimeout <= 0 {
		wrong("StartTimeout", "%v is not a positive duration", c.startTimeout)
	}
	if c.restarts < 0 {
		wrong("Restart", "%d is negative: 0 does not restart", c.restarts)
	}
	if c.logLimit <= 0 {
		wrong("LogLimit", "%d is not a positive number of bytes", c.logLimit)
	}
	switch given := c.every != 0 || c.failures != 0 || c.health != nil; {
	case given && (c.every <= 0 || c.failures < 1):
		wrong("Health", "a pause of %v and %d failures are not positive", c.every, c.failures)
	case given && len(c.health) == 0:
		wrong("Health", "it has no check: add one, such as HTTP, or leave it out")
	}
	if c.scale < 1 {
		wrong("Scale", "%d is not positive: 1 is one run", c.scale)
	}
	errs = append(errs, c.checkVolumes()...)
	for _, check := range slices.Concat(c.ready, c.health) {
		switch {
		case check.wrong != nil:
			errs = append(errs, check.wrong)
		case check.met == nil:
			wrong("Ready", "a Check is empty: use what Log, Listens, HTTP, Command, Func or Exits returns")
		case check.port != 0 && !slices.Contains(c.ports, check.port):
			wrong("HTTP", "port %d is not published: add service.Port(%d)", check.port, check.port)
		}
	}
	for _, check := range c.health {
		if check.once {
			wrong("Health", "%s happens once: it is for Ready", check.what)
		}
	}
	return errs
}

// readyChecks returns those of Ready, or the default ones.
func (c *config) readyChecks() []Check {
	if c.ready != nil {
		return c.ready
	}
	var checks []Check
	for _, p := range c.ports {
		checks = append(checks, Listens(p))
	}
	return checks
}
