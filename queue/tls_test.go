//go:build linux

package queue

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// authority signs certificates for 127.0.0.1.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign returns a new key and its certificate, which is signed by the key itself if a has none.
func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	c.SerialNumber, c.Subject = big.NewInt(1), pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	require.NoError(a.t, err)
	signed, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return signed, key
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// pair returns a certificate for 127.0.0.1, which servers and clients may show, and its key.
func (a *authority) pair() tls.Certificate {
	a.t.Helper()
	c, key := a.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
}

// files writes a certificate and its key into files.
func (a *authority) files() (cert, key string) {
	a.t.Helper()
	pair := a.pair()
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	require.NoError(a.t, err)
	dir := a.t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(a.t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600))
	require.NoError(a.t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return cert, key
}

// seedFile makes an nkey of a user, and writes its seed into a file.
func seedFile(t testing.TB) (file, public string) {
	t.Helper()
	k, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err := k.Seed()
	require.NoError(t, err)
	public, err = k.PublicKey()
	require.NoError(t, err)
	file = filepath.Join(t.TempDir(), "seed")
	require.NoError(t, os.WriteFile(file, seed, 0o600))
	return file, public
}

// startServer starts a server in this process that is not the queue's.
func startServer(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	o.NoLog, o.NoSigs = true, true
	s, err := server.NewServer(o)
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(testkit.Patience))
	return s
}

// refused requires that a queue can't be opened, and returns why.
func refused(t testing.TB, url string, opts ...Option) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	q, err := Open(ctx, url, opts...)
	if err == nil {
		q.Close()
	}
	require.Error(t, err)
	require.NoError(t, ctx.Err(), "it does not try for ever: %v", err)
	return err
}

// A queue that listens by TLS is used by those who trust its authority, and, if it asks for one,
// show a certificate of the right one. Others reach nothing.
func TestListenTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	q := open(t, Listen("127.0.0.1:0"), ListenTLS(&tls.Config{Certificates: []tls.Certificate{ours.pair()}, ClientCAs: ours.pool(), ClientAuth: tls.RequireAndVerifyClientCert}))
	url := q.URL()
	require.True(t, strings.HasPrefix(url, "tls://"), url)
	trust := func(a *authority, certs ...tls.Certificate) Option {
		return TLS(&tls.Config{RootCAs: a.pool(), Certificates: certs})
	}
	there, err := Open(testkit.Deadline(t), url, trust(ours, ours.pair()))
	require.NoError(t, err)
	defer there.Close()
	work(t, there)
	require.Equal(t, "by TLS", text(mustWait(t, q, submit(t, there, Task{Command: shell("echo by TLS")})).Stdout))

	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, refused(t, url, trust(others, ours.pair())), &unknown, "a server of somebody else's")
	require.ErrorContains(t, refused(t, url, trust(ours)), "tls", "it shows no certificate")
	require.ErrorContains(t, refused(t, url, trust(ours, others.pair())), "tls", "it shows one of somebody else's")
	require.Error(t, refused(t, strings.Replace(url, "@", "x@", 1), trust(ours, ours.pair())), "another token")

	var option *sandbox.OptionError
	_, err = Open(testkit.Deadline(t), "", Dir(t.TempDir()), ListenTLS(&tls.Config{}))
	require.ErrorAs(t, err, &option, "it listens on nothing")
	_, err = Open(testkit.Deadline(t), "", Dir(t.TempDir()), TLS(&tls.Config{}))
	require.ErrorAs(t, err, &option, "it connects to nothing")
	public := open(t, Listen("0.0.0.0:0"), ListenTLS(&tls.Config{Certificates: []tls.Certificate{ours.pair()}}))
	require.NotEmpty(t, public.URL(), "with TLS it may")
}

// A user's JWT says what it may, and a server believes one that an account of its operator has
// signed.
func TestCredentials(t *testing.T) {
	newKey := func(create func() (nkeys.KeyPair, error)) (k nkeys.KeyPair, public string) {
		k, err := create()
		require.NoError(t, err)
		public, err = k.PublicKey()
		require.NoError(t, err)
		return k, public
	}
	operator, operatorID := newKey(nkeys.CreateOperator)
	account, accountID := newKey(nkeys.CreateAccount)
	_, systemID := newKey(nkeys.CreateAccount)
	resolver := &server.MemAccResolver{}
	store := func(name, id string, streams bool) {
		c := jwt.NewAccountClaims(id)
		c.Name = name
		if streams {
			c.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
		}
		token, err := c.Encode(operator)
		require.NoError(t, err)
		require.NoError(t, resolver.Store(id, token))
	}
	store("farm", accountID, true)
	store("system", systemID, false)
	claims := jwt.NewOperatorClaims(operatorID)
	claims.SystemAccount = systemID
	trusted, err := claims.Encode(operator)
	require.NoError(t, err)
	decoded, err := jwt.DecodeOperatorClaims(trusted)
	require.NoError(t, err)
	s := startServer(t, &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), TrustedOperators: []*jwt.OperatorClaims{decoded}, AccountResolver: resolver, SystemAccount: systemID})

	// creds writes what nsc does.
	creds := func(signer nkeys.KeyPair, deny ...string) string {
		user, id := newKey(nkeys.CreateUser)
		c := jwt.NewUserClaims(id)
		c.Permissions.Pub.Deny = deny
		token, err := c.Encode(signer)
		require.NoError(t, err)
		seed, err := user.Seed()
		require.NoError(t, err)
		content, err := jwt.FormatUserConfig(token, seed)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "user.creds")
		require.NoError(t, os.WriteFile(file, content, 0o600))
		return file
	}
	q, err := Open(testkit.Deadline(t), s.ClientURL(), Credentials(creds(account)))
	require.NoError(t, err)
	defer q.Close()
	work(t, q)
	require.Equal(t, "known", text(mustWait(t, q, submit(t, q, Task{Command: shell("echo known")})).Stdout))

	reader, err := Open(testkit.Deadline(t), s.ClientURL(), Credentials(creds(account, "sandbox.task.>")))
	require.NoError(t, err)
	defer reader.Close()
	short, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = reader.Submit(short, Task{Command: shell("true")})
	require.Error(t, err, "its JWT does not let it")

	stranger, strangerID := newKey(nkeys.CreateAccount)
	require.NotEqual(t, accountID, strangerID)
	require.ErrorContains(t, refused(t, s.ClientURL(), Credentials(creds(stranger))), "uthoriz", "an account that the operator does not know")
	require.ErrorContains(t, refused(t, s.ClientURL()), "uthoriz", "nobody")
	require.Error(t, refused(t, s.ClientURL(), Credentials("/no/such/file")))
}
