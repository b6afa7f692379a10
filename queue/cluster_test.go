//go:build linux

package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// The helper server is one of a cluster, in a process of its own: its name, its directory, its
// ports for clients and for the others, and the others' addresses. The address that it tells others
// leads nowhere, so that they don't go round a link. It does not sync its files: a kill loses
// nothing that was written.
func init() {
	testkit.AddHelper("server", func(args []string) error {
		o := &server.Options{ServerName: args[0], Host: "127.0.0.1", JetStream: true, StoreDir: args[1], JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 30,
			NoSigs: true, NoLog: true, Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", NoAdvertise: true, Advertise: "127.0.0.1:1"}}
		if _, err := fmt.Sscan(args[2]+" "+args[3], &o.Port, &o.Cluster.Port); err != nil {
			return err
		}
		for _, a := range args[4:] {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: a})
		}
		s, err := server.NewServer(o)
		if err != nil {
			return err
		}
		s.Start()
		select {}
	})
}

// cluster is three servers, each a process. They reach each other through links that can be cut, or
// directly.
type cluster struct {
	t       testing.TB
	dirs    [3]string
	clients [3]int
	routes  [3]int
	links   [3][3]*link // from, to; nil: directly
	procs   [3]*os.Process
}

func startCluster(t testing.TB, linked bool) *cluster {
	t.Helper()
	c := newCluster(t, linked)
	for i := range 3 {
		c.start(i)
	}
	return c
}

// newCluster returns a cluster none of whose servers has been started.
func newCluster(t testing.TB, linked bool) *cluster {
	t.Helper()
	c := &cluster{t: t}
	var ports []int
	for _, l := range freePorts(t, 6) {
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		require.NoError(t, l.Close())
	}
	for i := range 3 {
		c.dirs[i], c.clients[i], c.routes[i] = t.TempDir(), ports[i], ports[i+3]
	}
	for i := range 3 {
		for j := range 3 {
			if i != j && linked {
				c.links[i][j] = newLink(t, fmt.Sprintf("127.0.0.1:%d", c.routes[j]))
			}
		}
	}
	return c
}

// freePorts returns listeners at ports that nobody else has.
func freePorts(t testing.TB, n int) (list []net.Listener) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		list = append(list, l)
	}
	return list
}

// start starts a server, which may have been killed before.
func (c *cluster) start(i int) {
	c.t.Helper()
	args := []string{fmt.Sprintf("s%d", i), c.dirs[i], strconv.Itoa(c.clients[i]), strconv.Itoa(c.routes[i])}
	for j := range 3 {
		switch {
		case i == j:
		case c.links[i][j] == nil:
			args = append(args, fmt.Sprintf("127.0.0.1:%d", c.routes[j]))
		default:
			args = append(args, c.links[i][j].address())
		}
	}
	cmd := testkit.HelperCommand(context.Background(), "server", args...)
	cmd.Stderr = os.Stderr
	require.NoError(c.t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill() // or it has ended
		<-ended
	})
	c.procs[i] = cmd.Process
}

// url returns the URL of some of the servers.
func (c *cluster) url(servers ...int) string {
	var list []string
	for _, i := range servers {
		list = append(list, fmt.Sprintf("nats://127.0.0.1:%d", c.clients[i]))
	}
	return strings.Join(list, ",")
}

// isolate cuts a server off from the others, or connects it again.
func (c *cluster) isolate(i int, cut bool) {
	for j := range 3 {
		if i != j {
			c.links[i][j].set(cut)
			c.links[j][i].set(cut)
		}
	}
}

// link passes TCP on to an address, unless it is cut.
type link struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newLink(t testing.TB, to string) *link {
	t.Helper()
	k := &link{l: freePorts(t, 1)[0], to: to, conns: map[net.Conn]bool{}}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			in, err := k.l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { k.pass(in) })
		}
	})
	t.Cleanup(func() {
		_ = k.l.Close() // it fails if it is closed
		k.set(true)
		group.Wait()
	})
	return k
}

func (k *link) address() string { return k.l.Addr().String() }

func (k *link) pass(in net.Conn) {
	defer in.Close()
	out, err := net.DialTimeout("tcp", k.to, time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	if !k.add(in, out) {
		return
	}
	defer k.remove(in, out)
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(in, out) // until either is closed
		in.Close()
	}()
	_, _ = io.Copy(out, in)
	out.Close()
	<-back
}

func (k *link) add(conns ...net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range conns {
		if !k.cut {
			k.conns[c] = true
		}
	}
	return !k.cut
}

func (k *link) remove(conns ...net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range conns {
		delete(k.conns, c)
	}
}

func (k *link) set(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	for c := range k.conns {
		if cut {
			c.Close()
		}
	}
}

// endings collects the ends of tasks that are announced, each record once, however often it is.
type endings struct {
	q  *Queue
	mu sync.Mutex
	of map[string]map[string]bool
}

func collectEnds(t testing.TB, q *Queue) *endings {
	t.Helper()
	e := &endings{q: q, of: map[string]map[string]bool{}}
	sub, err := q.nc.Subscribe(q.subject("now", ">"), func(m *nats.Msg) {
		r, err := decode[stateRecord](m.Data)
		if err != nil || r.State.Ended() {
			e.add(q.idOf("now", m.Subject), string(m.Data))
		}
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Unsubscribe() }) // fails if the connection is closed
	return e
}

func (e *endings) add(id, record string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of[id] == nil {
		e.of[id] = map[string]bool{}
	}
	e.of[id][record] = true
}

func (e *endings) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.of)
}

// requireOne requires that each task has ended in one way: what was announced, and what is kept.
func (e *endings) requireOne(t testing.TB, ctx context.Context, ids []string) {
	t.Helper()
	for _, id := range ids {
		var m *jetstream.RawStreamMsg
		testkit.Eventually(t, id+" has ended on the server that answers", func() (ended bool) {
			var err error
			if m, err = e.q.last(ctx, e.q.states, e.q.subject("state", id)); errors.Is(err, jetstream.ErrMsgNotFound) {
				return false // it lags
			}
			require.NoError(t, err)
			r, err := decode[stateRecord](m.Data)
			require.NoError(t, err)
			return r.State.Ended()
		})
		e.add(id, string(m.Data))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, records := range e.of {
		require.Len(t, records, 1, id)
	}
}

// tasksEnv in the environment is how many tasks TestCluster has, such as 1000, in place of as many
// as do not take long.
const tasksEnv = "SANDBOX_QUEUE_TASKS"

// Servers and workers are killed in turns while tasks are submitted and run; then one server is cut
// off from the others, with a worker that knows no other one. No task is lost, none has two ends,
// and no two attempts of one live at once.
func TestCluster(t *testing.T) {
	count, kills := 15, 1
	whole := os.Getenv(tasksEnv) != ""
	if whole {
		n, err := strconv.Atoi(os.Getenv(tasksEnv))
		require.NoError(t, err, tasksEnv)
		count, kills = max(n, count), max(n/20, kills)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience*time.Duration(4+count/50))
	defer cancel()
	c := startCluster(t, true)
	const lease = 4 * time.Second
	q, err := Open(ctx, c.url(0, 1, 2), Lease(lease))
	require.NoError(t, err)
	defer q.Close()
	ended := collectEnds(t, q)
	t.Run("edits", func(t *testing.T) { askEdited(t, ctx, c, lease-restartLoss) })
	t.Run("leaders", func(t *testing.T) { askOtherLeader(t, ctx, q, lease-restartLoss) })
	t.Run("kills", func(t *testing.T) { killInTurns(t, ctx, c, q, ended, count, kills) })
	t.Run("partition", func(t *testing.T) { partition(t, ctx, c, q, lease, ended, whole) })
}

func killInTurns(t *testing.T, ctx context.Context, c *cluster, q *Queue, ended *endings, count, kills int) {
	// A task that was submitted is known at once, whichever server answers.
	for range count {
		id, err := q.Submit(ctx, Task{Command: shell("true"), Class: "nobody"})
		require.NoError(t, err)
		_, err = q.Status(ctx, id)
		require.NoError(t, err)
	}
	out := outDir(t)
	tasks := apartTasks(count)
	workers := []*os.Process{startWorker(t, q, killedSlots, out), startWorker(t, q, killedSlots, out)}
	ctx, cancel := context.WithCancel(ctx)
	var ids []string
	var err error
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		if ids, err = q.SubmitAll(ctx, tasks); err == nil {
			q.WaitAll(ctx, ids[longTasks:]) // the long ones go on until the kills are over
		}
	}()
	defer func() {
		cancel()
		<-stop
	}()
	n, attempts := c.kill(t, kills, q, workers, ended, out, stop), 0
	<-stop
	require.NoError(t, err)
	results, errs := q.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	require.GreaterOrEqual(t, 2*n, kills, "a server and a worker were killed too seldom")
	for i, r := range results {
		require.Equal(t, fmt.Sprint(i), text(r.Stdout))
		attempts += requireApart(t, fmt.Sprintf("%s/%d-*", out, i))
	}
	require.Greater(t, attempts, count, "no attempt was lost")
	ended.requireOne(t, ctx, ids)
	testkit.Eventually(t, "there are logs", func() bool { // a server that was killed may have the first
		id, err := q.Submit(ctx, Task{Command: shell("echo logged; sleep 0.1; echo last")})
		require.NoError(t, err)
		var all []string
		for c, err := range q.Logs(ctx, id, 0) {
			require.NoError(t, err)
			all = append(all, text(c.Data))
		}
		return slices.Equal(all, []string{"logged", "last"})
	})
}

// killedSlots is how many slots a worker has that is killed, and longTasks how many tasks go on all
// the time: each worker has one of them, or more.
const killedSlots, longTasks = 2, 3

// apartTasks returns tasks each of whose attempts writes down when it lives, for requireApart. The
// first ones go on until there is a file /out/over.
func apartTasks(count int) (tasks []Task) {
	for i := range count {
		on := "[ $((n+=1)) -lt 3 ]"
		if i < longTasks {
			on = "[ ! -e /out/over ]"
		}
		command := shell(fmt.Sprintf("n=0; f=/out/%d-$(date +%%s%%N); while date +%%s%%N >> $f; %s; do sleep 0.02; done; echo %d", i, on, i))
		tasks = append(tasks, Task{Command: command, Key: fmt.Sprint(i), Retry: Retry{Attempts: maxAttempts, Backoff: time.Millisecond}})
	}
	return tasks
}

// kill kills a server and a worker in turns, which have apartTasks, and starts them again, until it
// has done so often enough or the short tasks have ended. It then waits until a long task that was
// lost is tried again, lets these end, and returns how often it has killed.
func (c *cluster) kill(t *testing.T, times int, q *Queue, workers []*os.Process, ended *endings, out string, stop <-chan struct{}) (n int) {
	attempts := func() int {
		files, err := filepath.Glob(fmt.Sprintf("%s/[0-%d]-*", out, longTasks-1))
		require.NoError(t, err)
		return len(files)
	}
	before := -1 // none is lost yet
	for ; n < times; n++ {
		begin := ended.count()
		if !await(stop, func() bool { return ended.count() >= begin+5 && attempts() >= longTasks }) {
			break
		}
		before = attempts()
		_ = c.procs[n%3].Kill() // it lives
		_ = workers[n%2].Kill() // or the kernel has killed it, as it was too slow
		workers[n%2] = startWorker(t, q, killedSlots, out)
		c.start(n % 3)
	}
	testkit.Eventually(t, "a long task that was lost is tried again", func() bool { return attempts() > before })
	require.NoError(t, os.WriteFile(out+"/over", nil, 0o644))
	return n
}

// await waits for a condition until it is to stop, and reports whether it holds.
func await(stop <-chan struct{}, condition func() bool) bool {
	for !condition() {
		select {
		case <-stop:
			return condition()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

// partition cuts a server off, with a worker that knows no other one and has a task. It is the one
// that answers for the task's lease, and goes on so for a while. The others have the task run
// again, if the test is whole.
func partition(t *testing.T, ctx context.Context, c *cluster, q *Queue, lease time.Duration, ended *endings, whole bool) {
	out := outDir(t)
	cut := -1
	testkit.Eventually(t, "one answers for the leases", func() bool {
		c, err := q.tasks.Consumer(ctx, "default-normal")
		if err == nil {
			_, err = fmt.Sscanf(c.CachedInfo().Cluster.Leader, "s%d", &cut)
		}
		return err == nil
	})
	alone, err := Open(ctx, c.url(cut))
	require.NoError(t, err)
	defer alone.Close()
	startWorker(t, alone, 1, out)
	id, err := q.Submit(ctx, Task{Command: goesOn, Retry: Retry{Attempts: 100}})
	require.NoError(t, err)
	awaitAttempt(t, out)
	c.isolate(cut, true)
	begun := time.Now()
	time.Sleep(lease)
	last := lastTime(t, out)
	require.Less(t, last.Sub(begun), lease, "the run lives on, whose lease no majority knows of")
	time.Sleep(200 * time.Millisecond)
	require.Equal(t, last, lastTime(t, out))
	if !whole {
		return
	}
	most, err := Open(ctx, c.url((cut+1)%3, (cut+2)%3))
	require.NoError(t, err)
	defer most.Close()
	startWorker(t, most, 2, out)
	var tasks []Task
	for i := range 5 {
		tasks = append(tasks, Task{Command: shell(fmt.Sprintf("echo %d", i))})
	}
	ids, err := most.SubmitAll(ctx, tasks)
	require.NoError(t, err)
	ids = append(ids, id)
	results, errs := most.WaitAll(ctx, ids)
	require.NoError(t, errors.Join(errs...))
	require.Greater(t, results[len(ids)-1].Attempt, 1)
	require.Greater(t, requireApart(t, out+"/*"), 1)
	c.isolate(cut, false)
	after, err := alone.Submit(ctx, Task{Command: shell("echo together")})
	require.NoError(t, err)
	res, err := alone.Wait(ctx, after)
	require.NoError(t, err)
	require.Equal(t, "together", text(res.Stdout))
	ended.requireOne(t, ctx, append(ids, after))
}

// lastTime returns the last time that the first attempt has written into its file.
func lastTime(t testing.TB, dir string) time.Time {
	t.Helper()
	files, err := filepath.Glob(dir + "/*")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	b, err := os.ReadFile(files[0])
	require.NoError(t, err)
	times := strings.Fields(string(b))
	require.NotEmpty(t, times)
	ns, err := strconv.ParseInt(times[len(times)-1], 10, 64)
	require.NoError(t, err)
	return time.Unix(0, ns)
}
