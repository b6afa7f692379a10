package queue

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startServer starts the server in this process.
func (q *Queue) startServer() error {
	c := &q.config
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockDir(filepath.Join(c.dir, "lock"))
	if err != nil {
		return wrong("queue.Dir", "%s can't be locked: %w: if another process has it, connect to that one by the URL of its Listen", c.dir, err)
	}
	q.unlock = unlock
	o := &server.Options{ServerName: "sandbox-queue", DontListen: true, JetStream: true, StoreDir: filepath.Join(c.dir, "jetstream"), NoSigs: true, NoLog: true,
		SyncAlways: c.syncEvery == 0, SyncInterval: c.syncEvery, JetStreamMaxMemory: 2*maxLogBytes + maxHealthBytes, JetStreamMaxStore: maxTaskBytes + 4*c.blobBytes}
	if c.listen != "" {
		a := netip.MustParseAddrPort(c.listen)
		o.DontListen, o.Host, o.Port, o.TLSConfig, o.TLS = false, a.Addr().String(), int(a.Port()), c.serverTLS, c.serverTLS != nil
		if o.Port == 0 {
			o.Port = server.RANDOM_PORT
		}
		if c.token, err = token(filepath.Join(c.dir, "token")); err != nil {
			return err
		}
		o.Authorization = c.token
	}
	q.embedded = &embedded{options: o}
	return q.embedded.start()
}

// embedded is the server in this process, which may be started anew.
type embedded struct {
	mu      sync.Mutex
	options *server.Options
	s       *server.Server // nil if it could not be started
}

func (e *embedded) start() error {
	s, err := server.NewServer(e.options.Clone())
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		s.WaitForShutdown()
		return errors.New("the server in this process did not start within 30 s: is the address of Listen free?")
	}
	e.s = s
	if a, ok := s.Addr().(*net.TCPAddr); ok && e.options.Port == server.RANDOM_PORT {
		e.options.Port = a.Port // also the next time
	}
	return nil
}

func (e *embedded) restart() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stop()
	return e.start()
}

func (e *embedded) stop() {
	if e.s != nil {
		e.s.Shutdown()
		e.s.WaitForShutdown()
		e.s = nil
	}
}

// InProcessConn implements nats.InProcessConnProvider.
func (e *embedded) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.s == nil {
		return nil, errors.New("the server in this process does not run")
	}
	return e.s.InProcessConn()
}

// address returns where the server listens.
func (e *embedded) address() string {
	return net.JoinHostPort(e.options.Host, strconv.Itoa(e.options.Port))
}

// token returns the token in a file, which is made if it is missing.
func token(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		b = []byte(rand.Text())
		err = os.WriteFile(file, b, 0o600)
	}
	if err == nil && len(b) < 16 {
		err = fmt.Errorf("%s: too short for a token: remove it", file)
	}
	return string(b), err
}
