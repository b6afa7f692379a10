//go:build linux

package services

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	etcd "go.etcd.io/etcd/client/v3"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

// etcdMember is one of a cluster, whose members find each other by their names. It is ready when
// the cluster has a leader.
func etcdMember(of describe, name string, all []string) *service.Service {
	var peers []string
	for _, n := range all {
		peers = append(peers, fmt.Sprintf("%s=http://%[1]s:2380", n))
	}
	return of(name, program{command: []string{"/usr/bin/etcd", "--name", name, "--data-dir", "/data/etcd",
		"--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://" + name + ":2379",
		"--listen-peer-urls", "http://0.0.0.0:2380", "--initial-advertise-peer-urls", "http://" + name + ":2380",
		"--initial-cluster", strings.Join(peers, ","), "--unsafe-no-fsync"}},
		service.Port(2379), service.Volume("/data", 256*sandbox.MiB), service.Restart(5), service.Ready(service.HTTP(2379, "/health")))
}

func etcdClient(t testing.TB, members ...*service.Instance) *etcd.Client {
	t.Helper()
	var at []string
	for _, m := range members {
		at = append(at, m.Addr(2379))
	}
	c, err := etcd.New(etcd.Config{Endpoints: at, DialTimeout: testkit.Patience})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// TestRootlessEtcd has a member of three killed: the others go on, and it comes back with its data.
func TestRootlessEtcd(t *testing.T) {
	fromBoth(t, "etcd", etcdCluster)
}

func etcdCluster(t *testing.T, of describe) {
	ctx := testkit.Deadline(t)
	names := []string{"etcd1", "etcd2", "etcd3"}
	var all []*service.Service
	for _, name := range names {
		all = append(all, etcdMember(of, name, names))
	}
	members := sandboxtest.Services(t, all...)
	killed, others := members[0], members[1:]
	put := func(c *etcd.Client, key, value string) {
		// What comes while a leader is chosen is lost, and the client does not repeat
		// writes.
		testkit.Eventually(t, "the cluster to take "+key, func() bool {
			_, err := c.Put(ctx, key, value)
			return err == nil
		})
	}
	put(etcdClient(t, members...), "before", "1")
	require.NoError(t, killed.Process().Kill())
	put(etcdClient(t, others...), "meanwhile", "2")
	testkit.Eventually(t, "the member to be back", func() bool {
		return strings.Count(fmt.Sprint(killed.Logs()), "restarting member") > 0 && killed.State() == service.Running
	})
	c := etcdClient(t, killed)
	for key, want := range map[string]string{"before": "1", "meanwhile": "2"} {
		got, err := c.Get(ctx, key)
		require.NoError(t, err)
		require.Len(t, got.Kvs, 1)
		require.Equal(t, want, string(got.Kvs[0].Value))
	}
}
