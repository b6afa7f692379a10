//go:build linux

package main

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/queue"
)

func TestServices(t *testing.T) {
	_, do := commands(t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"work", "-slots", "3", "-services", "127.0.0.1"}, nil, os.Stdout, os.Stderr)
	}()

	out, _ := do(0, "deploy", "-json", "-replicas", "2", "ticker", "-tenant", "a", "--", "/bin/sh", "-c", "sleep 1000")
	require.JSONEq(t, `{"name": "ticker", "replicas": 2}`, out)
	out, _ = do(0, "services")
	require.Equal(t, 3, strings.Count(out, "\n")+1, out)
	require.Equal(t, 2, strings.Count(out, "true"), out)
	out, _ = do(0, "scale", "-json", "ticker", "1")
	require.JSONEq(t, `{"name": "ticker", "replicas": 1}`, out)
	out, _ = do(0, "services", "-json")
	var s queue.ServiceStatus
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	require.Len(t, s.Replicas, 1)
	out, _ = do(0, "stop", "-json", "ticker")
	require.JSONEq(t, `{"name": "ticker", "stopped": true}`, out)
	out, stderr := do(failed, "stop", "-json", "ticker")
	require.Empty(t, out)
	require.Contains(t, stderr, "no such service")
	do(misused, "deploy", "-port", "80", "-health", "x", "ticker", "true")
	_, stderr = do(misused, "scale", "ticker", "many")
	require.Contains(t, stderr, "many")

	out, stderr = do(failed, "submit", "-tenant", "a", "-out", "r", "-wait", "--", "/bin/sh", "-c", "mkdir r; i=0; while [ $i -lt 10001 ]; do : > r/$i; i=$((i+1)); done; echo printed")
	require.Equal(t, "printed", out)
	require.Contains(t, stderr, "too large")
	stop()
	require.Zero(t, <-ended)
}

// A replica that no worker has said anything of has no time, not one of the year 1.
func TestSince(t *testing.T) {
	require.Empty(t, since(time.Time{}))
	require.Equal(t, "2026-11-30 21:59:00", since(time.Date(2026, 11, 30, 21, 59, 0, 0, time.UTC)))
}
