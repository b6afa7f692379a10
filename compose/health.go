package compose

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/service"
)

// health is a healthcheck.
type health struct {
	test                               []string
	interval, timeout, start, starting time.Duration
	retries                            int
}

const (
	maxTimeout = 30 * time.Second // of a check of package service
	firstPause = 50 * time.Millisecond
)

// healthcheck sets when the service is healthy.
func (b *builder) healthcheck() {
	c := b.s.HealthCheck
	if c == nil || c.Disable || len(c.Test) > 0 && c.Test[0] == "NONE" {
		return
	}
	h := &health{interval: 30 * time.Second, timeout: 30 * time.Second, starting: 5 * time.Second, retries: 3}
	switch {
	case len(c.Test) < 2:
		b.wrong("healthcheck.test", "it names no command; that of an image is not used")
		return
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
		if *c.Retries > 1e6 {
			b.wrong("healthcheck.retries", "%s: at most a million are possible", strconv.FormatUint(*c.Retries, 10))
		}
		h.retries = int(min(*c.Retries, 1e6))
	}
	b.p.health = h
}

// options returns what has a service checked. It is ready when it is healthy. While it starts it is
// asked more often than Docker does, so that nobody waits longer than needed.
func (h *health) options() []service.Option {
	var pauses sync.Map // of each replica: the next one
	ready := service.Func(func(ctx context.Context, i *service.Instance) error {
		err := h.check(ctx, i)
		if err == nil {
			pauses.Delete(i)
			return nil
		}
		pause := firstPause
		if next, ok := pauses.Load(i); ok {
			pause = next.(time.Duration)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pauses.Store(i, min(2*pause, h.interval, h.starting))
		return err
	})
	within := h.start + time.Duration(h.retries)*min(h.interval+h.timeout, 24*time.Hour)
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
