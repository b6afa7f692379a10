package queue

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A lane is a part of the tasks of a class and priority that is handed out by itself. Tasks of
// tenants are in lanes, which workers ask in turn, so that a long one holds back none of the
// others; so are calls of functions, which only workers of one build ask for. Tasks of neither kind
// are in the lane without a name, and as fair to tenants as one of them.
//
// A task's lane is part of its id, after the priority: linux.normal-t1f.4f2a, or
// linux.normal-b3f2a9c41d07e-t1f.4f2a. There are so many lanes of tenants, and so many consumers on
// the servers, whatever submitters say: tenants whose names lead to the same lane share it.

const (
	tenantLanes = 64
	buildDigits = 12
)

var routePattern = regexp.MustCompile(`^(low|normal|high)(-b[0-9a-f]{12}|-s)?(-t[0-3][0-9a-f])?$`)

// route is the part of an id that says the priority and the lane.
func route(p Priority, lane string) string {
	if lane == "" {
		return p.String()
	}
	return p.String() + "-" + lane
}

// serviceKind is the kind of replicas of services, which workers take that may (TakeServices).
const serviceKind = "s"

// laneOf returns the lane of a tenant's tasks of a kind, which is serviceKind, a build, or "" for
// commands.
func laneOf(kind, tenant string) string {
	var parts []string
	if kind == serviceKind {
		parts = append(parts, kind)
	} else if kind != "" {
		parts = append(parts, "b"+kind[:buildDigits])
	}
	if tenant != "" {
		sum := sha256.Sum256([]byte(tenant))
		parts = append(parts, tenantLane(int(sum[0])))
	}
	return strings.Join(parts, "-")
}

func tenantLane(n int) string { return fmt.Sprintf("t%02x", n%tenantLanes) }

// lanesFor returns the lanes that a worker asks, without the one that has no name.
func lanesFor(build string, services bool) (lanes []string) {
	kinds := []string{""}
	if build != "" {
		kinds = append(kinds, "b"+build[:buildDigits])
	}
	if services {
		kinds = append(kinds, serviceKind)
	}
	for _, kind := range kinds {
		for n := range tenantLanes {
			lanes = append(lanes, strings.TrimPrefix(kind+"-"+tenantLane(n), "-"))
		}
	}
	return append(lanes, kinds[1:]...)
}

// waitsFor returns what a task that waits needs besides a worker of its class, or "".
func waitsFor(id string) string {
	parts := strings.Split(id, ".")
	if len(parts) != 3 {
		return ""
	}
	m := routePattern.FindStringSubmatch(parts[1])
	switch {
	case m == nil || m[2] == "":
		return ""
	case m[2] == "-"+serviceKind:
		return "for a worker that takes services"
	}
	return "for a worker of build " + m[2][len("-b"):]
}

// inUse reports whether a lane has a task, which may also run, or wait for its time.
func (q *Queue) inUse(ctx context.Context, class, route string) (bool, error) {
	var info *jetstream.StreamInfo
	err := q.retry(ctx, func(ctx context.Context) (err error) {
		info, err = q.tasks.Info(ctx, jetstream.WithSubjectFilter(q.subject("task", class+"."+route+".*")))
		return err
	})
	if err != nil {
		return false, err
	}
	return len(info.State.Subjects) > 0, nil
}

// leader returns which server leads the stream of tasks, and since when, or "" if that is a single
// server or none answers.
func (q *Queue) leader(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, leaderLook) // it may be lost with the one before
	defer cancel()
	info, err := q.tasks.Info(ctx)
	if err != nil || info.Cluster == nil {
		return ""
	}
	return fmt.Sprint(info.Cluster.Leader, info.Cluster.LeaderSince)
}

// laneKept is for how long a consumer of a lane is kept at least.
const laneKept = 24 * time.Hour

// dropLanes removes the consumers of lanes that nobody has asked, and that have had no task, since
// a while: those of earlier builds would never be used again.
func (q *Queue) dropLanes(ctx context.Context, before time.Time) error {
	consumers := q.tasks.ListConsumers(ctx)
	for info := range consumers.Info() {
		_, part, ok := strings.Cut(info.Config.FilterSubject, q.config.name+".task.")
		parts := strings.Split(part, ".")
		if !ok || len(parts) != 3 || !routePattern.MatchString(parts[1]) || !strings.Contains(parts[1], "-") {
			continue
		}
		if info.NumPending > 0 || info.NumAckPending > 0 || info.NumWaiting > 0 || info.Created.After(before) {
			continue
		}
		// A task that comes now is handed out by the next consumer of the lane.
		if err := q.tasks.DeleteConsumer(ctx, info.Name); err != nil {
			return fmt.Errorf("queue: collect: %w", err)
		}
	}
	return consumers.Err()
}

// forgetConsumer has the next request of a lane look for its consumer, which may be gone.
func (q *Queue) forgetConsumer(class, route string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.consumers, class+"-"+route)
}
