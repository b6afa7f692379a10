package gateway

import "time"

// recent is what a run has asked for, maxRecent things at most. If there are as many, what it has
// not asked for again for a time gives way. That is looked for once a second at most, as it takes
// far longer than an answer.
type recent[V any] struct {
	all   map[string]*used[V]
	swept time.Time
}

type used[V any] struct {
	is   V
	last time.Time
}

const (
	maxRecent = 4096
	// keep is that time: as long as a run may keep an answer, and a minute for connections that
	// begin at its end.
	keep = nameTTL*time.Second + time.Minute
)

// get returns what is kept for a key, which is used by that.
func (r *recent[V]) get(key string) (is V, ok bool) {
	u := r.all[key]
	if u == nil {
		return is, false
	}
	u.last = time.Now()
	return u.is, true
}

// hasRoom reports whether there is room for one more, and makes some of what is old if need be. It
// calls take for each of these, and keeps it if that returns false.
func (r *recent[V]) hasRoom(take func(V) bool) bool {
	now := time.Now()
	if len(r.all) == maxRecent && now.Sub(r.swept) >= time.Second {
		r.swept = now
		for key, u := range r.all {
			if now.Sub(u.last) > keep && take(u.is) {
				delete(r.all, key)
			}
		}
	}
	return len(r.all) < maxRecent
}

// add adds what there is room for.
func (r *recent[V]) add(key string, is V) {
	if r.all == nil {
		r.all = map[string]*used[V]{}
	}
	r.all[key] = &used[V]{is, time.Now()}
}
