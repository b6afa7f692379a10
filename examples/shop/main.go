// Command shop runs three services on a private network: a web service, which takes orders at the
// one port that is published, Redis, which keeps them, and a worker, which fulfils them. It sends
// orders, kills the worker meanwhile and starts another, and waits until all are fulfilled.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/cellkit/sandbox"
)

// shop is its services while they run. Web and worker reach the database, which reaches nobody, and
// none of them anything else.
type shop struct {
	net             *sandbox.PrivateNetwork
	db, web, worker *sandbox.Process
	url             string
}

// open starts the services, of which web is published at an address.
func open(ctx context.Context, at string) (*shop, error) {
	n, err := sandbox.NewNetwork()
	if err != nil {
		return nil, err
	}
	s := &shop{net: n}
	if err := s.start(ctx, at); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *shop) start(ctx context.Context, at string) (err error) {
	redis := sandbox.WithCommand("redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp", "--daemonize", "no")
	if s.db, err = sandbox.New(redis, sandbox.WithMemory(256*sandbox.MiB), sandbox.WithNetwork(s.net.As("db", sandbox.Reaches()))).Start(ctx); err != nil {
		return err
	}
	if s.web, err = own("web", sandbox.WithNetwork(s.net.As("web", sandbox.Reaches("db"))), sandbox.WithPublish(at, 80)).Start(ctx); err != nil {
		return err
	}
	s.url = "http://" + s.web.Published()[0].String()
	return s.hire(ctx)
}

// hire starts a worker.
func (s *shop) hire(ctx context.Context) (err error) {
	s.worker, err = own("worker", sandbox.WithNetwork(s.net.As("worker", sandbox.Reaches("db")))).Start(ctx)
	return err
}

// fire kills the worker in the middle of whatever it does.
func (s *shop) fire() error {
	if err := s.worker.Kill(); err != nil {
		return err
	}
	_, err := s.worker.Wait()
	if errors.As(err, new(*sandbox.ExitError)) {
		return nil
	}
	return err
}

// own is a service of this program.
func own(name string, opts ...sandbox.Option) *sandbox.Sandbox {
	exe, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	return sandbox.New(sandbox.WithCommand("/shop", name), sandbox.WithReadOnlyBind(exe, "/shop"), sandbox.WithMemory(64*sandbox.MiB), sandbox.WithStderr(os.Stderr)).With(opts...)
}

// get returns what the shop says, which it may only do once its services are up.
func (s *shop) get(ctx context.Context, path string) (string, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
		if err != nil {
			return "", err
		}
		answer, err := http.DefaultClient.Do(r)
		if err == nil {
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err == nil && answer.StatusCode == http.StatusOK {
				return string(text), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s: %w", path, errors.Join(ctx.Err(), err))
		case <-time.After(min(wait, 100*time.Millisecond)):
		}
	}
}

// sell sends orders, some at a time, with another worker from their half on, and returns how many
// were sent a second.
func (s *shop) sell(ctx context.Context, orders, clients int) (rate float64, err error) {
	if _, err := s.get(ctx, "/fulfilled"); err != nil { // until it is open
		return 0, err
	}
	todo, failed := make(chan int), make(chan error, clients+1)
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for order := range todo {
				if _, err := s.get(ctx, fmt.Sprintf("/order?what=%d", order)); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	begin := time.Now()
	for order := range orders {
		if order == orders/2 {
			if err := errors.Join(s.fire(), s.hire(ctx)); err != nil {
				failed <- err
			}
		}
		select {
		case todo <- order:
		case err := <-failed:
			return 0, err
		}
	}
	close(todo)
	running.Wait()
	rate = float64(orders) / time.Since(begin).Seconds()
	for done := ""; done != fmt.Sprint(orders); {
		if done, err = s.get(ctx, "/fulfilled"); err != nil {
			return 0, err
		}
	}
	return rate, nil
}

// close ends what has started.
func (s *shop) close() error {
	for _, p := range []*sandbox.Process{s.web, s.worker, s.db} {
		if p != nil {
			_ = p.Kill()
			_, _ = p.Wait()
		}
	}
	return s.net.Close()
}

func main() {
	if len(os.Args) == 2 && services[os.Args[1]] != nil {
		log.Fatal(services[os.Args[1]]())
	}
	orders := flag.Int("orders", 2000, "how many to send")
	clients := flag.Int("clients", 20, "how many to send at a time")
	at := flag.String("at", "127.0.0.1:0", "the address to publish it at")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := open(ctx, *at)
	if err != nil {
		log.Fatal(err)
	}
	rate, err := s.sell(ctx, *orders, *clients)
	if err := errors.Join(err, s.close(), sandbox.Shutdown(context.Background())); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d orders fulfilled, %.0f taken a second, with a worker killed meanwhile\n", *orders, rate)
}
