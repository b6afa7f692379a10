package queue

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
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
		SyncAlways: c.syncEvery == 0, SyncInterval: c.syncEvery, JetStreamMaxMemory: 2 * maxLogBytes, JetStreamMaxStore: maxTaskBytes + 4*c.blobBytes}
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
	if q.embedded, err = server.NewServer(o); err != nil {
		return err
	}
	q.embedded.Start()
	if !q.embedded.ReadyForConnections(30 * time.Second) {
		return errors.New("the server in this process did not start within 30 s: is the address of Listen free?")
	}
	return nil
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
