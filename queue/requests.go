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
	inbox *inbox // nil: there is none
	late  *inbox // that had it before, for what comes late; nil: there is none
	last  uint64
	open  *request // nil: there is none
}

// inbox is where answers come to.
type inbox struct {
	subject string
	sub     *nats.Subscription
	latest  *request // that has it
}

// request is for up to left messages.
type request struct {
	from  *source
	asked time.Duration // by clockNow
	lease time.Duration // for how long they are given out
	made  time.Time     // when the consumer was that gives them
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

var (
	errGone   = errors.New("the consumer is gone")
	errMoved  = errors.New("another server leads the consumer")
	errSilent = errors.New("the servers do not answer")
)

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
	q := &request{from: r.from, asked: asked, lease: info.Config.AckWait, made: info.Created, waits: wait > 0, left: n, ended: make(chan struct{})}
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
		// What comes now must not be taken for a later request's, and goes back.
		r.late.close()
		r.late, r.inbox, q.err = r.inbox, nil, errSilent
	}
	return q, err
}

// answerTime is after how long a request that is over, and was not answered, is given up.
const answerTime = time.Second

func (r *requests) begin(q *request) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inbox == nil {
		in := &inbox{subject: r.w.q.nc.NewInbox() + "."}
		if in.sub, err = r.w.q.nc.Subscribe(in.subject+"*", func(m *nats.Msg) { r.answered(in, m) }); err != nil {
			return err
		}
		r.inbox = in
	}
	r.last++
	q.reply = r.inbox.subject + strconv.FormatUint(r.last, 36)
	r.open, r.inbox.latest = q, q
	return nil
}

// close ends what is used for requests, of which there are none any more.
func (r *requests) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inbox.close()
	r.late.close()
	r.inbox, r.late = nil, nil
}

func (in *inbox) close() {
	if in != nil {
		_ = in.sub.Unsubscribe() // fails if the connection is closed
	}
}

// answered is called for each message to an inbox.
func (r *requests) answered(in *inbox, m *nats.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := in.latest
	if m.Reply == "" { // it can't be acknowledged, so it is no task's
		if q == r.open && m.Subject == q.reply {
			q.end(m.Header.Get("Status"), m.Header.Get("Description"))
		}
		return
	}
	if q != r.open || q.left == 0 { // it was given up, or got what it asked for
		pulled{m: m, asked: q.asked, lease: q.lease}.back(time.Millisecond)
		return
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
	case strings.Contains(strings.ToLower(description), "leadership change"):
		q.err = errMoved
	default:
		q.err = fmt.Errorf("the servers answer %s %s", status, description)
	}
	close(q.ended)
}
