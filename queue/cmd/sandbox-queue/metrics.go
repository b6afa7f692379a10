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

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/queue/metrics"
)

// serveMetrics serves metrics to Prometheus, and to who reads JSON, at an address, until the
// returned function is called. If there is no address it does nothing.
func (e *env) serveMetrics(address string, m *metrics.Metrics) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().IsLoopback() {
		return nil, &sandbox.OptionError{Option: "-metrics", Err: fmt.Errorf("%q: must be a loopback address and a port, such as 127.0.0.1:9464: whoever reaches it sees the metrics", address)}
	}
	r := prometheus.NewRegistry()
	if err := errors.Join(r.Register(m), r.Register(collectors.NewGoCollector()), r.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /metrics.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, m)
	})
	fmt.Fprintf(e.err, "metrics at http://%s/metrics\n", l.Addr())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(l) // until it is shut down
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), time.Second)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close() // of a client that does not end
		}
		<-ended
	}, nil
}
