package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cellkit/sandbox/queue"
)

// connectionFlags adds the flags that say which queue it is, and how to connect to it. A worker
// waits for its queue as long as it must: what starts workers may start them first.
func (e *env) connectionFlags(worker bool) {
	within := 30 * time.Second
	if worker {
		within = 0
	}
	e.flags.StringVar(&e.url, "url", "", "the queue's `URL`. Others see arguments: one with a token is better in the variable")
	e.flags.StringVar(&e.nkey, "nkey", "", "the `file` of the seed of an nkey, by which the servers know you")
	e.flags.StringVar(&e.creds, "creds", "", "the `file` of a JWT and its nkey, as nsc makes it")
	e.flags.StringVar(&e.ca, "ca", "", "a `file` of certificates: the authorities to trust for tls:// URLs, in place of the system's")
	e.flags.DurationVar(&e.within, "connect-timeout", within, "how long to try to open the queue; 0: as long as it takes")
}

// openFor parses a subcommand's arguments and opens its queue.
func (e *env) openFor(args []string, least, most int, what string) (*queue.Queue, []string, error) {
	rest, err := e.parse(args, least, most, what)
	if err != nil {
		return nil, nil, err
	}
	q, err := e.open()
	return q, rest, err
}

// open opens the queue, and says so if that takes long.
func (e *env) open(opts ...queue.Option) (*queue.Queue, error) {
	connection, err := e.connection()
	if err != nil {
		return nil, err
	}
	at, err := address(e.url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := e.ctx, func() {}
	if e.within > 0 {
		ctx, cancel = context.WithTimeoutCause(e.ctx, e.within, fmt.Errorf("%s could not be opened within %v (-connect-timeout): does its server run, and is -url right?", at, e.within))
	}
	defer cancel()
	said := make(chan struct{})
	waits := time.AfterFunc(2*time.Second, func() {
		defer close(said)
		if e.json {
			e.log().Warn("waiting for the queue", "url", at)
		} else {
			fmt.Fprintf(e.err, "sandbox-queue: waiting for %s\n", at)
		}
	})
	e.opened, err = queue.Open(ctx, e.url, append(opts, connection...)...)
	if !waits.Stop() {
		<-said
	}
	if errors.Is(err, nats.ErrAuthorization) {
		err = fmt.Errorf("%w: is the token in -url right, or -nkey or -creds?", err)
	}
	return e.opened, err
}

// address returns URLs as package nats reads them, without what is secret in them. Those of which
// part of a secret would be taken for a host or a path are refused, as that would be printed.
func address(urls string) (string, error) {
	var shown []string
	for s := range strings.SplitSeq(urls, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
			return "", misuse("-url: must be as nats://127.0.0.1:4222, or nats://TOKEN@127.0.0.1:4222 where / ? # %% and , in the token are %%2F %%3F %%23 %%25 and %%2C")
		}
		u.User = nil
		shown = append(shown, plain(u.String()))
	}
	return strings.Join(shown, ","), nil
}

// connection returns the options of the flags. The variables are no defaults of these, as -h prints
// such and a URL may have a token in it.
func (e *env) connection() (opts []queue.Option, err error) {
	if err := positive("-connect-timeout", e.within); err != nil {
		return nil, err
	}
	for name, value := range map[string]*string{"URL": &e.url, "NKEY": &e.nkey, "CREDS": &e.creds, "CA": &e.ca} {
		*value = cmp.Or(*value, os.Getenv("SANDBOX_QUEUE_"+name))
	}
	if e.url == "" {
		return nil, misuse("-url: which queue? set it, or SANDBOX_QUEUE_URL, to the URL that sandbox-queue serve prints")
	}
	if e.nkey != "" {
		opts = append(opts, queue.NKey(e.nkey))
	}
	if e.creds != "" {
		opts = append(opts, queue.Credentials(e.creds))
	}
	if e.ca != "" {
		b, err := os.ReadFile(e.ca)
		if err != nil {
			return nil, misuse("-ca: %w", err)
		}
		t := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !t.RootCAs.AppendCertsFromPEM(b) {
			return nil, misuse("-ca: %s has no certificate in PEM: name a file that begins with -----BEGIN CERTIFICATE-----", e.ca)
		}
		opts = append(opts, queue.TLS(t))
	}
	return opts, nil
}

// replicasFlag adds -replicas, and returns the option that it asks for.
func (e *env) replicasFlag() func() queue.Option {
	n := e.flags.Int("replicas", 0, "if this makes the queue: on how many servers each record is, 1, 3 or 5; default: 3 on a cluster, else 1")
	return func() queue.Option { return queue.Replicas(*n) }
}
