//go:build linux

package services

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

func TestMain(m *testing.M) {
	testkit.Main(m, func(context.Context) error { return cache.Close() }, func(context.Context) error { return database.Close() }, sandbox.Shutdown)
}

// bin is where Debian has the programs of PostgreSQL.
var bin = func() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	return append(found, "/usr/bin")[0]
}()

// makeDatabase takes the directory.
var makeDatabase = bin + `/initdb -D "$0" -U postgres -A trust --locale=C --no-sync --wal-segsize=1
echo host all all all trust >>"$0/pg_hba.conf"`

// database is made once, which takes a second, and copied for each instance.
var database = service.NewSnapshot("/data", 256*sandbox.MiB, sandbox.New(sandbox.WithCommand("sh", "-ec", makeDatabase, "/data/db")))

// pgCommand has what a test can do without: that data outlives the machine's power, and much
// memory.
var pgCommand = []string{bin + "/postgres", "-D", "/data/db", "-k", "/tmp", "-c", "listen_addresses=*", "-c", "fsync=off", "-c", "shared_buffers=16MB"}

var pgBox = sandbox.New(sandbox.WithCommand(pgCommand[0], pgCommand[1:]...),
	// The fast shutdown, which does not wait for clients.
	sandbox.WithStopSignal(syscall.SIGINT, 10*time.Second))

var pgOptions = []service.Option{service.Port(5432), service.Ready(service.Log(pgReady))}

const pgReady = "ready to accept connections"

var postgres = service.New("postgres", pgBox, append(pgOptions, service.From(database))...)

// cache is one Redis for all tests of the package.
var cache = sandboxtest.Share(service.New("redis",
	sandbox.New(sandbox.WithCommand("redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp")),
	service.Port(6379), service.Health(time.Second, 3, service.Command("redis-cli", "ping"))))

func connect(t testing.TB, pg *service.Instance) *pgx.Conn {
	t.Helper()
	db, err := pgx.Connect(t.Context(), "postgres://postgres@"+pg.Addr(5432)+"/postgres?sslmode=disable")
	require.NoError(t, err)
	t.Cleanup(func() { db.Close(context.Background()) })
	return db
}

func numbers(t testing.TB, db *pgx.Conn, begin int) (sum int) {
	t.Helper()
	_, err := db.Exec(t.Context(), "CREATE TABLE numbers (n int)")
	require.NoError(t, err)
	_, err = db.Exec(t.Context(), "INSERT INTO numbers SELECT generate_series($1::int, $1::int + 9)", begin)
	require.NoError(t, err)
	require.NoError(t, db.QueryRow(t.Context(), "SELECT sum(n) FROM numbers").Scan(&sum))
	return sum
}

// pgFiles are what PostgreSQL needs besides its program: it wants the directory of its libraries.
var pgFiles = []string{filepath.Dir(bin) + "/lib/plpgsql.so", "/usr/share" + strings.TrimSuffix(strings.TrimPrefix(bin, "/usr/lib"), "/bin"), "/usr/share/zoneinfo"}

// writeDatabase makes an image of this machine's PostgreSQL, with a database in it.
func writeDatabase(t testing.TB, archive, tag string) {
	data, err := sandbox.NewScratch(256 * sandbox.MiB)
	require.NoError(t, err)
	defer data.Close()
	_, err = sandbox.New(sandbox.WithCommand("sh", "-ec", makeDatabase, "/data/db"), sandbox.WithScratch("/data", data)).Run(t.Context())
	require.NoError(t, err)
	l := newLayer(t)
	l.dir("data", 0o755, 1000)
	l.add(data.FS(), "db", "data/", 1000)
	for _, name := range append(pgFiles, pgCommand[0]) {
		l.add(os.DirFS("/"), name[1:], "", 0)
	}
	l.write(archive, tag, map[string]any{"User": "1000:1000", "Cmd": pgCommand, "StopSignal": "SIGINT", "Env": []string{"PATH=" + bin}})
}

// TestPostgresImage has two of an image, each with what the image has of data, and changes
// of its own. Where files of images belong to whoever unpacks them, PostgreSQL refuses its data.
func TestPostgresImage(t *testing.T) {
	testkit.Need(t, "PostgreSQL")
	dir := testkit.OpenDir(t)
	archive := filepath.Join(dir, "postgres.tar")
	writeDatabase(t, archive, "postgres:test")
	store, err := image.OpenStore(filepath.Join(dir, "store"))
	require.NoError(t, err)
	both := sandboxtest.Services(t, service.Open("one", image.Sandbox(archive, image.WithStore(store)), pgOptions...), service.Open("two", image.Sandbox(archive, image.WithStore(store)), pgOptions...))
	for n, pg := range both {
		require.Equal(t, 45+10*n, numbers(t, connect(t, pg), n))
	}
}

// redisServer keeps each write on its volume.
var redisServer = program{command: []string{"/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always"}}

// TestRootlessRedis has what was written before Redis was killed there after that.
func TestRootlessRedis(t *testing.T) {
	fromBoth(t, "redis-server", func(t *testing.T, of describe) {
		i := sandboxtest.Service(t, of("redis", redisServer, service.Port(6379), service.Volume("/data", 64*sandbox.MiB), service.Restart(1)))
		client := redis.NewClient(&redis.Options{Addr: i.Addr(6379)})
		defer client.Close()
		require.NoError(t, client.Set(t.Context(), "key", "kept", 0).Err())
		killed(t, i)
		got, err := client.Get(t.Context(), "key").Result()
		require.NoError(t, err)
		require.Equal(t, "kept", got)
	})
}

// killed kills a service's run, and waits until the next one is ready.
func killed(t *testing.T, i *service.Instance) {
	t.Helper()
	first := i.Process()
	require.NoError(t, first.Kill())
	testkit.Eventually(t, i.Name()+" to be back", func() bool {
		p := i.Process()
		return p != nil && p != first && i.State() == service.Running
	})
}

// TestRootlessPostgres has a PostgreSQL for each of some tests at a time, and one Redis for all.
func TestRootlessPostgres(t *testing.T) {
	testkit.Need(t, "PostgreSQL")
	for n := range 3 {
		t.Run("parallel", func(t *testing.T) {
			t.Parallel()
			sum := numbers(t, connect(t, sandboxtest.Service(t, postgres)), n)
			require.Equal(t, 45+10*n, sum)
			client := redis.NewClient(&redis.Options{Addr: cache.Get(t, "redis").Addr(6379)})
			defer client.Close()
			require.NoError(t, client.Set(t.Context(), strconv.Itoa(n), sum, 0).Err())
			got, err := client.Get(t.Context(), strconv.Itoa(n)).Int()
			require.NoError(t, err)
			require.Equal(t, sum, got)
		})
	}
}

// TestRootlessPostgresIsolated reaches the database by its name, and nothing else.
func TestRootlessPostgresIsolated(t *testing.T) {
	if os.Getenv("INSIDE") == "" {
		testkit.Need(t, "PostgreSQL")
	}
	pg, other := sandboxtest.Service(t, postgres), cache.Get(t, "redis")
	sandboxtest.Isolate(t, pg.Reach(), sandbox.WithEnv("INSIDE=1"))
	require.Equal(t, 45, numbers(t, connect(t, pg), 0))
	_, err := net.DialTimeout("tcp", other.Addr(6379), 2*time.Second)
	require.Error(t, err)
}

// TestRootlessPostgresKilled has a PostgreSQL recover, with its data, from being killed.
func TestRootlessPostgresKilled(t *testing.T) {
	keeps := program{command: []string{bin + "/postgres", "-D", "/data/db", "-k", "/tmp", "-c", "listen_addresses=*"}, stop: syscall.SIGINT, files: pgFiles}
	fromBoth(t, "PostgreSQL", func(t *testing.T, of describe) {
		pg := sandboxtest.Service(t, of("postgres", keeps, service.Port(5432), service.From(database), service.Ready(service.Log(pgReady)), service.Restart(1)))
		require.Equal(t, 45, numbers(t, connect(t, pg), 0))
		killed(t, pg)
		var sum int
		require.NoError(t, connect(t, pg).QueryRow(t.Context(), "SELECT sum(n) FROM numbers").Scan(&sum))
		require.Equal(t, 45, sum)
	})
}
