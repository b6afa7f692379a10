package queue

import (
	"sync"
	"time"

	"github.com/cellkit/sandbox/pool"
)

// budget is what a worker's pool may use (pool.Memory, pool.CPUs) and how much of it tasks have. A
// task is charged what it asks for (Limits), or else what the pool's sandbox gives a run, or else
// an equal share for each slot.
type budget struct {
	capacity pool.Capacity
	slots    int
	room     chan struct{} // gets something when a task has given back what it had

	mu     sync.Mutex
	tasks  int
	memory int64
	cpus   float64
}

// fullFor is how long a task that does not fit has its lane's turn: what gets free is kept for it,
// before smaller ones behind it may overtake it. After that, others have as long. Meanwhile the
// lane is asked only when a task has ended.
const fullFor = 3 * time.Second

// turn reserves what gets free for a task that did not fit.
type turn struct {
	id    string
	since time.Duration // by clockNow
}

// full records that a task of the lane does not fit, and gives it the turn if it is free.
func (l *source) full(id string) {
	now := clockNow()
	if t := l.turn.Load(); t == nil || now >= t.since+fullFor && t.id != id || now >= t.since+2*fullFor {
		l.turn.Store(&turn{id, now})
	}
	l.fullUntil.Store(int64(now + fullFor))
}

// othersTurn returns the id of another task that has the lane's turn, or "" if there is none.
func (l *source) othersTurn(id string) string {
	if t := l.turn.Load(); t != nil && t.id != id && clockNow() < t.since+fullFor {
		return t.id
	}
	return ""
}

// had ends a task's turn.
func (l *source) had(id string) {
	if t := l.turn.Load(); t != nil && t.id == id {
		l.turn.CompareAndSwap(t, nil)
	}
}

func newBudget(c pool.Capacity, slots int) *budget {
	return &budget{capacity: c, slots: max(slots, 1), room: make(chan struct{}, 1)}
}

// most is what a single task can have.
func (b *budget) most() Limits { return Limits{Memory: b.capacity.Memory, CPUs: b.capacity.CPUs} }

// charge returns what a task of these limits is charged.
func (b *budget) charge(l Limits) (memory int64, cpus float64) {
	memory, cpus = l.Memory, l.CPUs
	fill(&memory, b.capacity.RunMemory)
	fill(&memory, b.capacity.Memory/int64(b.slots))
	fill(&cpus, b.capacity.RunCPUs)
	fill(&cpus, b.capacity.CPUs/float64(b.slots))
	return memory, cpus
}

// take charges a task, if there is room for it. One that would have more than there is at all, as a
// function may, is charged it when no other runs.
func (b *budget) take(l Limits) (give func(), ok bool) {
	memory, cpus := b.charge(l)
	b.mu.Lock()
	defer b.mu.Unlock()
	overMemory := b.capacity.Memory > 0 && memory > b.capacity.Memory-b.memory
	// The margin is for what adding rounds.
	overCPUs := b.capacity.CPUs > 0 && b.cpus+cpus > b.capacity.CPUs*(1+1e-9)
	if b.tasks > 0 && (overMemory || overCPUs) {
		return nil, false
	}
	b.tasks++
	b.memory += memory
	b.cpus += cpus
	return func() {
		b.mu.Lock()
		b.memory -= memory
		b.cpus -= cpus
		if b.tasks--; b.tasks == 0 {
			b.cpus = 0 // without what rounding has left
		}
		b.mu.Unlock()
		select {
		case b.room <- struct{}{}:
		default:
		}
	}, true
}
