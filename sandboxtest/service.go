package sandboxtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cellkit/sandbox/service"
)

// Service starts a service for the test, waits until it is ready, and ends it with the test. If it
// can't be started, the test fails.
//
//	db := sandboxtest.Service(t, service.New("db", postgres, service.Port(5432)))
//	pool, err := pgxpool.New(t.Context(), "postgres://postgres@"+db.Addr(5432)+"/postgres")
//
// Each port is published at one of this machine that is free, so tests with services may be
// parallel. If the test fails, the end of the service's log is in that of the test, and what is
// kept of it in a file of the test's artifacts (go test -artifacts), NAME.log. The service ends
// before the test's own deadline, too. Service skips the test as Need does.
//
// An isolated test reaches its services, and nothing else, by their names:
//
//	db := sandboxtest.Service(t, ...)
//	sandboxtest.Isolate(t, db.Reach())
//
// Inside, Service starts nothing: db.Addr(5432) is "db:5432" there.
func Service(t testing.TB, s *service.Service) *service.Instance {
	t.Helper()
	return Services(t, s)[0]
}

// Services does what Service does for several, which are started as service.StartAll does, and
// returns their instances in the order of the arguments.
func Services(t testing.TB, s ...*service.Service) []*service.Instance {
	t.Helper()
	if isolated != "" {
		return elsewhere(s)
	}
	Need(t)
	// The test's own context ends before cleanups begin, which may use the services.
	ctx, cancel := withDeadline(context.Background(), t)
	t.Cleanup(cancel)
	g, err := service.StartAll(ctx, s...)
	if err != nil {
		t.Fatalf("sandboxtest: %v", err)
	}
	running := instances(g, s)
	t.Cleanup(func() {
		err := g.Close()
		if err != nil && ctx.Err() == nil {
			t.Errorf("sandboxtest: %v", err)
		}
		report(t, running, time.Time{})
	})
	return running
}

// instances returns those of a group, in the order of the services.
func instances(g *service.Group, s []*service.Service) []*service.Instance {
	running := make([]*service.Instance, len(s))
	for n := range s {
		running[n] = g.Service(s[n].Name())
	}
	return running
}

// elsewhere stands, in an isolated test, for services that were started outside.
func elsewhere(s []*service.Service) []*service.Instance {
	there := make([]*service.Instance, len(s))
	for n := range s {
		there[n] = s[n].At(s[n].Name())
	}
	return there
}

// report has a failed test show what the services have written since a time.
func report(t testing.TB, running []*service.Instance, since time.Time) {
	if !t.Failed() {
		return
	}
	for _, i := range running {
		var whole bytes.Buffer
		for _, line := range i.Logs() {
			if !line.Time.Before(since) {
				fmt.Fprintf(&whole, "%s %s%s\n", line.Time.UTC().Format("15:04:05.000"), replica(line), line)
			}
		}
		end := &tail{}
		_, _ = end.Write(whole.Bytes())
		t.Logf("sandboxtest: the log of service %s:\n%s", i.Name(), end)
		if value("test.artifacts") != "true" { // else it is temporary, and may be gone
			continue
		}
		if err := os.WriteFile(filepath.Join(t.ArtifactDir(), i.Name()+".log"), whole.Bytes(), 0o666); err != nil {
			t.Logf("sandboxtest: %v", err)
		}
	}
}

// replica returns what stands before a line of one of several replicas.
func replica(line service.Line) string {
	if line.Replica == 0 {
		return ""
	}
	return fmt.Sprintf("[%d] ", line.Replica)
}

// Shared is services that the tests of a package have in common. The first test that gets one
// starts them all, and they end with this process, however it ends, or by Close.
type Shared struct {
	services []*service.Service

	mu    sync.Mutex
	group *service.Group
	err   error
}

// Share describes services that tests share: a variable of the package.
//
//	var shared = sandboxtest.Share(db)
//
//	func TestX(t *testing.T) {
//		addr := shared.Get(t, "db").Addr(5432)
func Share(services ...*service.Service) *Shared { return &Shared{services: services} }

// Get returns the instance of the service with that name, which is ready. If it can't be started,
// or has failed since, the test fails. If the test fails, what the service has written since Get is
// reported as Service says. Get skips the test as Need does, and in an isolated test it is what
// Service is there.
func (s *Shared) Get(t testing.TB, name string) *service.Instance {
	t.Helper()
	n := slices.IndexFunc(s.services, func(s *service.Service) bool { return s.Name() == name })
	if n < 0 {
		t.Fatalf("sandboxtest: no shared service has the name %q", name)
	}
	if isolated != "" {
		return elsewhere(s.services)[n]
	}
	Need(t)
	g, err := s.start()
	if err != nil {
		t.Fatalf("sandboxtest: a shared service failed: %v", err)
	}
	i, begin := instances(g, s.services)[n], time.Now()
	t.Cleanup(func() { report(t, []*service.Instance{i}, begin) })
	return i
}

// start starts the services unless they have been.
func (s *Shared) start() (*service.Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group == nil && s.err == nil {
		s.group, s.err = service.StartAll(context.Background(), s.services...)
	}
	if s.err == nil {
		return s.group, s.group.Err()
	}
	return nil, s.err
}

// Close ends the services, if they were started, as service.Group.Close does: at the end of
// TestMain, where it matters that they end gently. The next Get starts them anew.
func (s *Shared) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.group
	s.group, s.err = nil, nil
	if g == nil {
		return nil
	}
	return g.Close()
}
