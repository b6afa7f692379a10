package main

import (
	"context"
	"log"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && services[os.Args[1]] != nil {
		log.Fatal(services[os.Args[1]]())
	}
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestSell has all orders fulfilled although a worker is killed.
func TestSell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := open(ctx)
	require.NoError(t, err)
	rate, err := s.sell(ctx, 500, 10)
	require.NoError(t, err)
	t.Logf("%.0f orders a second", rate)
	require.NoError(t, s.close())
}
