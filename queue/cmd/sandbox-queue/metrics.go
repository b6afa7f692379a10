package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cellkit/sandbox/queue/metrics"
)

// serveMetrics serves metrics to Prometheus, and to who reads JSON, at an address, until stop is
// called, and says and returns the URL. If there is no address it does nothing.
func (e *env) serveMetrics(address string, m *metrics.Metrics) (at string, stop func(), err error) {
	if address == "" {
		return "", func() {}, nil
	}
	if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().IsLoopback() {
		return "", nil, misuse("-metrics: %q: must be a loopback address and a port, such as 127.0.0.1:9464: whoever reaches it sees the metrics", address)
	}
	r := prometheus.NewRegistry()
	if err := errors.Join(r.Register(m), r.Register(collectors.NewGoCollector()), r.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))); err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", nil, fmt.Errorf("-metrics: %w: take another port, or 0 for any free one", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /metrics.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, m)
	})
	if at = fmt.Sprintf("http://%s/metrics", l.Addr()); e.json {
		e.log().Info("metrics are served", "url", at)
	} else {
		fmt.Fprintln(e.err, "metrics at", at)
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(l) // until it is shut down
	}()
	return at, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), time.Second)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close() // of a client that does not end
		}
		<-ended
	}, nil
}
