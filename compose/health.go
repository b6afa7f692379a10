package compose

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/service"
)

// health is a healthcheck. What is zero was not said.
type health struct {
	test                               []string
	interval, timeout, start, starting time.Duration
	retries                            int
}

// start is how far the start of a service has come.
type start struct {
	of    *sandbox.Process
	began time.Time
	pause time.Duration // before the next check
}

const (
	maxTimeout = 30 * time.Second // of a check of package service
	firstPause = 50 * time.Millisecond
)

// healthcheck sets when the service is healthy.
func (b *builder) healthcheck() {
	c := b.s.HealthCheck
	if c == nil {
		b.p.health = &health{}
		return
	}
	if c.Disable || len(c.Test) > 0 && c.Test[0] == "NONE" {
		return
	}
	h := &health{}
	switch {
	case len(c.Test) == 0: // that of the image
	case len(c.Test) == 1:
		b.wrong("healthcheck.test", "it names no command")
	case c.Test[0] == "CMD-SHELL":
		h.test = []string{"/bin/sh", "-c", c.Test[1]}
	default:
		h.test = c.Test[1:]
	}
	for _, d := range []struct {
		field string
		given *types.Duration
		to    *time.Duration
	}{{"interval", c.Interval, &h.interval}, {"timeout", c.Timeout, &h.timeout}, {"start_period", c.StartPeriod, &h.start}, {"start_interval", c.StartInterval, &h.starting}} {
		if d.given == nil || *d.given == 0 {
			continue
		}
		if *d.to = time.Duration(*d.given); *d.to < 0 {
			b.wrong("healthcheck."+d.field, "%v is negative", *d.to)
		}
	}
	if h.timeout > maxTimeout {
		b.wrong("healthcheck.timeout", "%v: a check may take %v at most", h.timeout, maxTimeout)
	}
	if c.Retries != nil && *c.Retries > 0 {
		if *c.Retries > maxRetries {
			b.wrong("healthcheck.retries", "%s: at most a million are possible", strconv.FormatUint(*c.Retries, 10))
		}
		h.retries = int(min(*c.Retries, maxRetries))
	}
	b.p.health = h
}

const maxRetries = 1_000_000

// with returns the healthcheck with what the image has, where the file says nothing, and with what
// Docker has where neither does. It returns nil if neither has one.
func (h *health) with(i *image.Healthcheck) *health {
	if h == nil {
		return nil
	}
	full := *h
	if i != nil {
		if full.test == nil {
			full.test = i.Command
		}
		// The image may be hostile, and checks are executed by this process.
		within := func(given time.Duration, least, most time.Duration) time.Duration {
			if given <= 0 {
				return 0
			}
			return min(max(given, least), most)
		}
		full.interval = cmp.Or(full.interval, within(i.Interval, time.Second, 24*time.Hour))
		full.timeout = cmp.Or(full.timeout, within(i.Timeout, time.Second, maxTimeout))
		full.start = cmp.Or(full.start, within(i.StartPeriod, time.Second, 24*time.Hour))
		full.retries = cmp.Or(full.retries, min(max(i.Retries, 0), maxRetries))
	}
	if full.test == nil {
		return nil
	}
	full.interval, full.timeout = cmp.Or(full.interval, 30*time.Second), cmp.Or(full.timeout, maxTimeout)
	full.starting, full.retries = cmp.Or(full.starting, 5*time.Second), cmp.Or(full.retries, 3)
	return &full
}

// options returns what has a service checked that listens on TCP ports, or on none if it names
// none. It is ready when it is healthy. While it starts it is asked more often than Docker does, so
// that nobody waits longer than needed. But images of databases first start a server that nobody
// else reaches, to fill it, and checks pass meanwhile. So until Docker would have asked for the
// first time, a service that names ports must listen on one of them, too.
func (h *health) options(ports []int) []service.Option {
	first := h.interval
	if h.start > 0 {
		first = h.starting
	}
	var starts sync.Map // of each replica: its *start
	ready := service.Func(func(ctx context.Context, i *service.Instance) error {
		p := i.Process()
		var s *start
		if last, ok := starts.Load(i); ok {
			s = last.(*start)
		}
		if s == nil || s.of != p {
			s = &start{p, time.Now(), firstPause}
			starts.Store(i, s)
		}
		err := h.check(ctx, i)
		if err == nil && p != nil && len(ports) > 0 && time.Since(s.began) < first {
			if err = service.Listening(p, ports...); err != nil {
				err = fmt.Errorf("healthcheck: passed, but of the ports of the service: %w", err)
			}
		}
		if err == nil {
			starts.Delete(i)
			return nil
		}
		select {
		case <-time.After(s.pause):
		case <-ctx.Done():
		}
		s.pause = min(2*s.pause, h.interval, h.starting)
		return err
	})
	const most = 365 * 24 * time.Hour
	each := max(min(h.interval, 24*time.Hour)+min(h.timeout, 24*time.Hour), 1)
	within := min(h.start, most) + min(time.Duration(h.retries), most/each)*each
	return []service.Option{service.Ready(ready), service.StartTimeout(max(within, time.Minute)), service.Health(h.interval, h.retries, service.Func(h.check))}
}

// check executes the command once.
func (h *health) check(ctx context.Context, i *service.Instance) error {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	var out tail
	p, err := i.Exec(ctx, sandbox.WithCommand(h.test[0], h.test[1:]...), sandbox.WithStopSignal(nil, 0), sandbox.WithStdout(&out), sandbox.WithStderr(&out))
	if err == nil {
		_, err = p.Wait()
	}
	if err == nil {
		return nil
	}
	if said := out.text(); said != "" {
		return fmt.Errorf("healthcheck: %w: %q", err, said)
	}
	return fmt.Errorf("healthcheck: %w", err)
}

// maxTail is how much of a check's output an error has.
const maxTail = 200

// tail keeps the end of what is written.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b[max(0, len(b)-maxTail):]...)
	t.kept = t.kept[max(0, len(t.kept)-maxTail):]
	return len(b), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}
