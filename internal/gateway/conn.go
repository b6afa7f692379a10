package gateway

import (
	"net/netip"
	"time"
)

// Verdict is sandbox.Verdict, which has its documentation.
type Verdict int

const (
	Allowed Verdict = iota
	Refused
	Failed
)

func (v Verdict) String() string {
	switch v {
	case Allowed:
		return "allowed"
	case Refused:
		return "refused"
	case Failed:
		return "failed"
	}
	return "unknown"
}

// Conn is sandbox.Conn, which has its documentation.
type Conn struct {
	Run       string
	Name      string
	Port      uint16
	Address   netip.AddrPort
	Sent      int64
	Received  int64
	Begin     time.Time
	Duration  time.Duration
	Published bool
	UDP       bool
	Verdict   Verdict
	Rule      string
	Err       error
}
