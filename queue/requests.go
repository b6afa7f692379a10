package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// requests are those for messages of a lane, one at a time. Answers come to one subscription: one
// of each request's own would have to be known to all servers of a cluster first. A message does
// not say which request it is for.
type requests struct {
	w    *Worker
	from *source
	got  func(*request, *nats.Msg) // is called for each message before ask returns

	mu    sync.Mutex
	inbox string
	sub   *nats.Subscription // to the inbox; nil: there is none
	last  uint64
	open  *request // nil: there is none
}

// request is for up to left messages.
type request struct {
	from  *source
	asked time.Duration // by clockNow
	lease time.Duration // for how long they are given out
	waits bool          // for the first one
	reply string        // the subject of what servers say of it
	given int           // with left and err guarded by requests.mu until ask has returned
	left  int
	err   error
	ended chan struct{} // closed when all has come that will
}

// What servers say of requests.
const (
	noMessages   = "404"
	noneInTime   = "408"
	noResponders = "503"
)

var errGone = errors.New("the consumer is gone")

// ask asks for up to n messages, and waits until they have come or there are no more. If wait is
// not 0, it waits so long for the first one; n must be 1. It is not to be given up before, as what
// came then would be lost until its lease is.
func (r *requests) ask(ctx context.Context, n int, wait time.Duration) (*request, error) {
	asked := clockNow()
	c, err := r.w.q.consumer(ctx, r.from.class, r.from.route)
	if err != nil {
		return nil, err
	}
	info := c.CachedInfo()
	body, err := json.Marshal(struct {
		Batch   int           `json:"batch"`
		NoWait  bool          `json:"no_wait,omitempty"`
		Expires time.Duration `json:"expires,omitempty"`
	}{n, wait == 0, wait})
	if err != nil {
		return nil, err
	}
	q := &request{from: r.from, asked: asked, lease: info.Config.AckWait, waits: wait > 0, left: n, ended: make(chan struct{})}
	if err := r.begin(q); err != nil {
		return nil, err
	}
	err = r.w.q.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+info.Stream+"."+info.Name, q.reply, body)
	if err == nil {
		lost := time.NewTimer(wait + answerTime)
		defer lost.Stop()
		select {
		case <-q.ended:
		case <-lost.C:
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = nil
	select {
	case <-q.ended:
	default:
		r.closeLocked() // what comes now must not be taken for a later request's
	}
	return q, err
}

// answerTime is after how long a request that is over, and was not answered, is given up.
const answerTime = time.Second

func (r *requests) begin(q *request) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sub == nil {
		r.inbox = r.w.q.nc.NewInbox() + "."
		if r.sub, err = r.w.q.nc.Subscribe(r.inbox+"*", r.answered); err != nil {
			return err
		}
	}
	r.last++
	q.reply = r.inbox + strconv.FormatUint(r.last, 36)
	r.open = q
	return nil
}

func (r *requests) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeLocked()
}

func (r *requests) closeLocked() {
	if r.sub != nil {
		_ = r.sub.Unsubscribe() // fails if the connection is closed
		r.sub = nil
	}
}

// answered is called for each message to the inbox.
func (r *requests) answered(m *nats.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.open
	if q == nil || m.Sub != r.sub {
		return
	}
	if m.Reply == "" { // it can't be acknowledged, so it is no task's
		if m.Subject == q.reply {
			q.end(m.Header.Get("Status"), m.Header.Get("Description"))
		}
		return
	}
	if q.left == 0 {
		return // more than was asked for
	}
	q.given++
	q.left--
	if q.left == 0 {
		q.end(noMessages, "") // ask returns later: it needs the lock
	}
	r.got(q, m) // last, so that the task's turn is before that of the next request
}

// end ends a request with what servers say.
func (q *request) end(status, description string) {
	select {
	case <-q.ended:
		return
	default:
	}
	switch {
	case status == "" || status[0] == '1':
		return // it goes on
	case status == noMessages || status == noneInTime:
	case status == noResponders || strings.Contains(strings.ToLower(description), "consumer deleted"):
		q.err = errGone
	default:
		q.err = fmt.Errorf("the servers answer %s %s", status, description)
	}
	close(q.ended)
}
