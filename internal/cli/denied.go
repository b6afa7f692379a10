package cli

// What -allow would have to list.

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cellkit/sandbox"
)

// maxDenied bounds how many connections that were refused are told of: the run chooses the names.
const maxDenied = 20

// denied collects what a run may not reach, each once.
type denied struct {
	mu  sync.Mutex
	all []denial
}

// denial is a connection that was refused, or a name that was asked for, without a port.
type denial struct {
	To  string `json:"to"`
	Why string `json:"why"`
	// The value of -allow that would let it pass, if one would.
	Allow string `json:"allow,omitempty"`
}

func (d *denied) add(c sandbox.Conn) {
	if c.Verdict != sandbox.Refused || c.Published {
		return
	}
	to, port := c.Name, "PORT"
	if to == "" {
		to = c.Address.Addr().String()
		if c.Address.Addr().Is6() {
			to = "[" + to + "]"
		}
	}
	if c.Port != 0 {
		port = strconv.Itoa(int(c.Port))
		if c.UDP {
			port += "/udp"
		}
	}
	if c.Ping {
		port = "ping"
	}
	is := denial{To: to, Why: strings.ReplaceAll(c.Err.Error(), "AllowCIDR", "-allow")}
	if c.Port != 0 || c.Ping {
		is.To += ":" + port
	}
	if c.Rule == "" {
		is.Allow = to + ":" + port
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.all) < maxDenied && !slices.Contains(d.all, is) {
		d.all = append(d.all, is)
	}
}

// list returns them. There are no more once the network is closed.
func (d *denied) list() []denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.all)
}

func (is denial) text() string {
	text := fmt.Sprintf("refused %s: %s", is.To, is.Why)
	if is.Allow != "" {
		text += "; to allow it: -allow " + is.Allow
	}
	return text
}
