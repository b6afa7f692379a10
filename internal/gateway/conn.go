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

// UDP and Ping report what it is made of, if that is not TCP.
func (c *Conn) UDP() bool  { return c.over == overUDP }
func (c *Conn) Ping() bool { return c.over == overPing }

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
	over      protocol
	elsewhere bool // another member has it: there is nothing to tell
	Verdict   Verdict
	Rule      string
	Err       error
}
