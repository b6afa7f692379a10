//go:build linux && peers

// SQLite in Go, which River has here, takes minutes to compile: -tags peers has it.

package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"
	_ "modernc.org/sqlite"

	pools "github.com/cellkit/sandbox/pool"
)

// peers are queues that the one of this module is compared with.
func (b *bench) peers() []func() (subject, error) {
	install("redis-server")
	return []func() (subject, error){b.riverOnSQLite, b.riverOnPostgres, b.asynqEverySecond, b.asynqAlways}
}

// outcome is what the other queues keep of a run, as JSON.
type outcome struct {
	ExitCode int           `json:"exit_code"`
	Reason   string        `json:"reason"`
	Wall     time.Duration `json:"wall"`
}

func runIn(ctx context.Context, p *pools.Pool) (outcome, error) {
	r, err := p.Run(ctx)
	if err != nil {
		return outcome{}, err
	}
	return outcome{r.ExitCode, r.Reason.String(), r.Usage.Wall}, nil
}

type emptyJob struct{}

func (emptyJob) Kind() string { return "empty" }

type emptyWorker struct {
	river.WorkerDefaults[emptyJob]
	pool *pools.Pool
}

func (w *emptyWorker) Work(ctx context.Context, _ *river.Job[emptyJob]) error {
	r, err := runIn(ctx, w.pool)
	if err != nil {
		return err
	}
	return river.RecordOutput(ctx, r)
}

// riverOnSQLite is River on SQLite, which syncs each transaction. It looks for jobs as often as it
// can be told to.
func (b *bench) riverOnSQLite() (subject, error) {
	s := subject{name: "River on SQLite, synced always"}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.path("river"), "db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(10000)&_txlock=immediate")
	if err != nil {
		return s, err
	}
	b.ends = append(b.ends, func() { _ = db.Close() })
	db.SetMaxOpenConns(1) // as its documentation says
	return riverOn(b, s, riversqlite.New(db))
}

// nobody is the user of PostgreSQL, which does not run as root.
const nobody = 65534

// riverOnPostgres is River on a PostgreSQL of its own, which syncs each transaction, and says that
// there is a job.
func (b *bench) riverOnPostgres() (subject, error) {
	s := subject{name: "River on PostgreSQL, synced always"}
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		// Debian's package would also start a server of its own.
		return s, errors.Join(errors.New("there is no PostgreSQL in /usr/lib/postgresql: install it"), err)
	}
	bin, dir := bins[len(bins)-1], b.path("postgres")
	if err := errors.Join(os.Chmod(b.dir, 0o711), os.Chown(dir, nobody, nobody)); err != nil {
		return s, err
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), append(args, "-D", filepath.Join(dir, "data"))...)
		cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd
	}
	if out, err := command("initdb", "--auth=trust", "--username=bench", "--no-locale", "--encoding=UTF8").CombinedOutput(); err != nil {
		return s, fmt.Errorf("initdb: %w: %s", err, out)
	}
	server := command("postgres", "-k", dir, "-c", "listen_addresses=")
	if err := server.Start(); err != nil {
		return s, err
	}
	b.ends = append(b.ends, func() {
		_ = server.Process.Signal(syscall.SIGINT) // or it has ended
		_ = server.Wait()
	})
	db, err := pgxpool.New(context.Background(), fmt.Sprintf("host=%s user=bench dbname=postgres pool_max_conns=%d", dir, 2*slots))
	if err != nil {
		return s, err
	}
	b.ends = append(b.ends, db.Close)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = db.Ping(context.Background()); err == nil {
			break
		}
		if time.Now().After(end) {
			return s, err
		}
	}
	return riverOn(b, s, riverpgxv5.New(db))
}

// riverOn has a worker of River in this process.
func riverOn[T any](b *bench, s subject, driver riverdriver.Driver[T]) (subject, error) {
	ctx := context.Background()
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return s, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return s, err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &emptyWorker{pool: b.pool()})
	client, err := river.NewClient(driver, &river.Config{Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: slots}}, Workers: workers,
		FetchCooldown: river.FetchCooldownMin, FetchPollInterval: river.FetchPollIntervalMin})
	if err != nil {
		return s, err
	}
	ends := &arrivals{of: map[int64]chan struct{}{}}
	events, stop := client.Subscribe(river.EventKindJobCompleted)
	if err := client.Start(ctx); err != nil {
		return s, err
	}
	b.ends = append(b.ends, func() {
		must(client.Stop(ctx))
		stop()
	})
	go func() {
		for e := range events {
			close(ends.channel(e.Job.ID))
		}
	}()
	s.run = func() error {
		r, err := client.Insert(ctx, emptyJob{}, nil)
		if err != nil {
			return err
		}
		defer ends.forget(r.Job.ID)
		select {
		case <-ends.channel(r.Job.ID): // its result is in the database
			job, err := client.JobGet(ctx, r.Job.ID)
			if err == nil && len(job.Output()) == 0 {
				err = fmt.Errorf("job %d has no result", job.ID)
			}
			return err
		case <-time.After(time.Minute):
			return fmt.Errorf("job %d did not end", r.Job.ID)
		}
	}
	return s, nil
}

// arrivals has a channel for each job, which is closed when the job has ended.
type arrivals struct {
	mu sync.Mutex
	of map[int64]chan struct{}
}

func (a *arrivals) channel(id int64) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of[id] == nil {
		a.of[id] = make(chan struct{})
	}
	return a.of[id]
}

func (a *arrivals) forget(id int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.of, id)
}

func (b *bench) asynqEverySecond() (subject, error) { return b.asynq("everysec", "every second") }
func (b *bench) asynqAlways() (subject, error)      { return b.asynq("always", "always") }

// asynq is asynq on a Redis of its own. It looks for tasks as often as it can be told to.
func (b *bench) asynq(sync, text string) (subject, error) {
	s := subject{name: "asynq on Redis, synced " + text}
	ports, err := freePorts(1)
	if err != nil {
		return s, err
	}
	if err := b.startCommand(exec.Command("redis-server", "--port", fmt.Sprint(ports[0]), "--bind", "127.0.0.1", "--dir", b.path("redis-"+sync), "--appendonly", "yes", "--appendfsync", sync, "--save", "")); err != nil {
		return s, err
	}
	redis := asynq.RedisClientOpt{Addr: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	client, inspector := asynq.NewClient(redis), asynq.NewInspector(redis)
	b.ends = append(b.ends, func() { _ = client.Close(); _ = inspector.Close() })
	for end := time.Now().Add(10 * time.Second); client.Ping() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return s, client.Ping()
		}
	}
	p := b.pool()
	server := asynq.NewServer(redis, asynq.Config{Concurrency: slots, TaskCheckInterval: time.Millisecond, LogLevel: asynq.FatalLevel})
	if err := server.Start(asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error {
		r, err := runIn(ctx, p)
		if err != nil {
			return err
		}
		data, err := json.Marshal(r)
		if err == nil {
			_, err = t.ResultWriter().Write(data)
		}
		return err
	})); err != nil {
		return s, err
	}
	b.ends = append(b.ends, server.Shutdown)
	s.run = func() error {
		info, err := client.Enqueue(asynq.NewTask("empty", nil), asynq.Retention(time.Hour))
		if err != nil {
			return err
		}
		// It has nothing to wait with.
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
			now, err := inspector.GetTaskInfo("default", info.ID)
			if err != nil {
				return err
			}
			if now.State == asynq.TaskStateCompleted && len(now.Result) > 0 {
				return nil
			}
		}
		return fmt.Errorf("task %s did not end", info.ID)
	}
	return s, nil
}
