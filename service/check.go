package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// Check is a condition of a service: what Log, Listens, HTTP, Command, Func or Exits returns.
type Check struct {
	what  string // for errors
	port  int    // that must be published, or 0
	once  bool   // it is no state, but something that happens
	exits bool
	re    *regexp.Regexp
	wrong error
	// met returns why the condition is not met, or nil.
	met func(context.Context, *attempt) error
}

// checkTimeout limits a single check.
const checkTimeout = 30 * time.Second

// Log is met when a line of the service's output matches the regular expression, since its last
// start. A line that is longer than 64 KiB is matched in pieces of that size.
func Log(pattern string) Check {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return Check{wrong: fault.Option("service.Log", "%w", err)}
	}
	return Check{what: fmt.Sprintf("a line that matches %q", pattern), once: true, re: re, met: func(_ context.Context, a *attempt) error {
		if !a.i.log.saw(a.i.replica, re) {
			return errors.New("none so far")
		}
		return nil
	}}
}

// Listens is met when the service listens on the port, by TCP, at an address that others reach. It
// asks the kernel, so that the service sees no connection. It needs /proc as the kernel has it by
// default, without hidepid.
func Listens(port int) Check {
	c := Check{what: fmt.Sprintf("listening on port %d", port), met: func(_ context.Context, a *attempt) error {
		return listens(a.p.PID(), port)
	}}
	if port < 1 || port > 65535 {
		c.wrong = fault.Option("service.Listens", "%d: ports go from 1 to 65535", port)
	}
	return c
}

// HTTP is met when a GET of the path, such as "/health", at a port of Port is answered with a
// status from 200 to 399. No redirect is followed, no proxy is used, and the body is not read.
func HTTP(port int, path string) Check {
	c := Check{what: fmt.Sprintf("HTTP at port %d, %s", port, path), port: port, met: func(ctx context.Context, a *attempt) error {
		return get(ctx, "http://"+a.i.Addr(port)+path)
	}}
	if _, err := url.ParseRequestURI(path); err != nil || path[0] != '/' {
		c.wrong = fault.Option("service.HTTP", "%q is no path: it begins with /, and is encoded as in a URL", path)
	}
	return c
}

// answerError is an error whose text may quote what a service has sent, as package http's do.
type answerError struct{ error }

func (e answerError) Error() string { return shown(e.error.Error()) }
func (e answerError) Unwrap() error { return e.error }

func get(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(r) // which follows nothing, other than a client
	if err != nil {
		return answerError{err}
	}
	_ = response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// Command is met when the command, executed in the service's run by sandbox.Process.Exec, exits
// with status 0.
func Command(name string, args ...string) Check {
	return Check{what: fmt.Sprintf("command %q", name), met: func(ctx context.Context, a *attempt) error {
		p, err := a.p.Exec(ctx, sandbox.WithCommand(name, args...), sandbox.WithStopSignal(nil, 0))
		if err != nil {
			return err
		}
		_, err = p.Wait()
		return err
	}}
}

// Func is met when f returns nil. It may use the instance's methods except for Close, and must
// return when ctx ends. With Scale it is called for each replica, with that as the instance.
func Func(f func(ctx context.Context, i *Instance) error) Check {
	if f == nil {
		return Check{wrong: fault.Option("service.Func", "the function is nil: leave the check out")}
	}
	return Check{what: "a function", met: func(ctx context.Context, a *attempt) error { return f(ctx, a.i) }}
}

// Exits is met when the service has exited with status 0: one that prepares something for others.
func Exits() Check {
	return Check{what: "exiting with status 0", once: true, exits: true, met: func(context.Context, *attempt) error {
		return errors.New("it has not exited")
	}}
}
