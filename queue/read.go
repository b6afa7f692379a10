package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A record has the headers that its writer gave it, whoever that was, and servers add theirs, of
// the same kind, after them. nats.go reads up to the first blank line, which a writer can add too.
// So headers count if they are all that was sent, and nothing in them is unknown or there twice.

// expected is the header of a record that expects what was there before, as all tasks and states
// do. Servers write their answers wherever who asks says, so also to the subjects of records: such
// an answer has headers of theirs too, or none at all.
const expected = "Nats-Expected-Last-Subject-Sequence"

// known are the headers of records, all but the first by servers.
var known = []string{expected, "Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"}

var errHeaders = errors.New("the record's headers can't be read")

// last returns the last record at a subject of a stream. The error is jetstream.ErrMsgNotFound if
// there is none.
func (q *Queue) last(ctx context.Context, s jetstream.Stream, subject string) (*jetstream.RawStreamMsg, error) {
	return q.read(ctx, nameOf(s), query{Last: subject})
}

func nameOf(s jetstream.Stream) string { return s.CachedInfo().Config.Name }

// next returns the first record at the subjects of a pattern whose number is at least from.
func (q *Queue) next(ctx context.Context, s jetstream.Stream, from uint64, pattern string) (*jetstream.RawStreamMsg, error) {
	return q.read(ctx, nameOf(s), query{From: from, Pattern: pattern})
}

// query is which record of a stream is asked for: that with the number From, or the first one from
// there on whose subject the pattern has, or the last one at a subject.
type query struct {
	From      uint64 `json:"seq,omitempty"`
	Pattern   string `json:"next_by_subj,omitempty"`
	Last      string `json:"last_by_subj,omitempty"`
	Batch     int    `json:"batch,omitempty"` // 1: also how many come after it
	NoHeaders bool   `json:"no_hdr,omitempty"`
}

// read asks for one record.
func (q *Queue) read(ctx context.Context, stream string, what query) (m *jetstream.RawStreamMsg, err error) {
	err = q.retry(ctx, func(ctx context.Context) error {
		answer, err := q.request(ctx, stream, what)
		if err == nil {
			m, err = q.recordOf(answer, stream)
		}
		if err == nil && (what.Last != "" && m.Subject != what.Last || m.Sequence < what.From) {
			err = errHeaders
		}
		if errors.Is(err, errHeaders) {
			m, err = q.readPlain(ctx, stream, what)
		}
		return err
	})
	return m, err
}

// request asks for one record, and returns the answer.
func (q *Queue) request(ctx context.Context, stream string, what query) (*nats.Msg, error) {
	m, err := q.requestOnce(ctx, stream, what)
	if !errors.Is(err, nats.ErrNoResponders) {
		return m, err
	}
	// Or it is a record whose headers look so. Then it can be had without them, and looks so
	// again afterwards.
	bare := what
	bare.NoHeaders = true
	if _, bareErr := q.requestOnce(ctx, stream, bare); bareErr != nil {
		return nil, err
	}
	if m, err = q.requestOnce(ctx, stream, what); errors.Is(err, nats.ErrNoResponders) {
		err = errHeaders
	}
	return m, err
}

func (q *Queue) requestOnce(ctx context.Context, stream string, what query) (*nats.Msg, error) {
	subject := "$JS.API.DIRECT.GET." + stream
	if what.Last != "" {
		subject += "." + what.Last // which servers can hold users to
		what.Last = ""
	}
	if what == (query{}) {
		return q.nc.RequestWithContext(ctx, subject, nil)
	}
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	return q.nc.RequestWithContext(ctx, subject, body)
}

// plain reports whether a message has all headers that were sent, known ones, and each once.
func plain(m *nats.Msg) bool {
	for key, values := range m.Header {
		if len(values) != 1 || !slices.Contains(known, key) {
			return false
		}
	}
	return m.Size() == (&nats.Msg{Subject: m.Subject, Reply: m.Reply, Header: m.Header, Data: m.Data}).Size()
}

// isWord reports whether a message is a server's word alone, such as that there is no record.
func isWord(m *nats.Msg) bool {
	status, description := m.Header.Get("Status"), m.Header.Get("Description")
	line := "NATS/1.0 " + strings.TrimSpace(status+" "+description) + "\r\n\r\n"
	return status != "" && len(m.Data) == 0 && m.Size() == len(m.Subject)+len(m.Reply)+len(line)
}

// recordOf returns the record of a stream that is in a server's answer, or in its announcement.
func (q *Queue) recordOf(m *nats.Msg, stream string) (*jetstream.RawStreamMsg, error) {
	if isWord(m) {
		if m.Header.Get("Status") == noMessages {
			return nil, jetstream.ErrMsgNotFound
		}
		return nil, fmt.Errorf("the servers answer %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
	}
	if !plain(m) || m.Header.Get("Nats-Stream") != stream {
		return nil, errHeaders
	}
	r := q.record(stream, jetstream.RawStreamMsg{Subject: m.Header.Get("Nats-Subject"), Header: m.Header, Data: m.Data})
	var err, timeErr error
	r.Sequence, err = strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	r.Time, timeErr = time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
	return r, errors.Join(err, timeErr)
}

// record returns a record that a stream has. It is without its data, which decode refuses, if that
// does not count: a state or a service that was not written in the place of what was there before.
func (q *Queue) record(stream string, r jetstream.RawStreamMsg) *jetstream.RawStreamMsg {
	if (stream == nameOf(q.states) || stream == nameOf(q.services)) && r.Header[expected] == nil {
		r.Data = nil
	}
	return &r
}

// plainTime is for how long the answer to readPlain is waited for: a user that may not ask gets
// none.
const plainTime = 2 * time.Second

// readPlain is read by the request whose answer has what the server says apart from the headers. It
// takes more, and a permission of its own.
func (q *Queue) readPlain(ctx context.Context, stream string, what query) (*jetstream.RawStreamMsg, error) {
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, plainTime)
	defer cancel()
	m, err := q.nc.RequestWithContext(short, "$JS.API.STREAM.MSG.GET."+stream, body)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return nil, errHeaders
	}
	if err != nil {
		return nil, err
	}
	var answer struct {
		Message struct {
			Subject  string    `json:"subject"`
			Sequence uint64    `json:"seq"`
			Headers  []byte    `json:"hdrs"`
			Data     []byte    `json:"data"`
			Time     time.Time `json:"time"`
		} `json:"message"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, err
	}
	if answer.Error != nil {
		if answer.Error.Code == 404 {
			return nil, jetstream.ErrMsgNotFound
		}
		return nil, answer.Error
	}
	r := answer.Message
	if bytes.Contains(r.Headers, []byte("\nNats-Stream:")) { // an answer that was written there
		r.Headers, r.Data = nil, nil
	}
	h, _ := nats.DecodeHeadersMsg(r.Headers) // none, if they can't be
	return q.record(stream, jetstream.RawStreamMsg{Subject: r.Subject, Sequence: r.Sequence, Header: h, Data: r.Data, Time: r.Time}), nil
}
