package gateway

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/cellkit/sandbox/internal/spec"
)

// The addresses of networks: RFC 2544, section C.2.2, which nobody on the internet has. All
// networks have the same ones, as nothing connects them.
var (
	runRange  = netip.MustParsePrefix("198.18.0.0/16")
	nameRange = netip.MustParsePrefix("198.19.0.0/16")
	resolver  = netip.MustParseAddr(spec.Resolver) // the gateway's own
	firstRun  = 2
	maxRuns   = 1<<16 - 2 - firstRun
	maxNamed  = 1<<16 - 2 // the last address of a name, the first is 1
	// A random one of RFC 4193. Resolvers prefer IPv4 to such (RFC 6724, section 2.1), so that
	// who listens on 0.0.0.0 alone is found at once.
	prefix6 = netip.MustParsePrefix("fde0:6be0:7e22::/96")
)

// in6 returns the address of IPv6 that stands for the same as one of ours.
func in6(a netip.Addr) netip.Addr {
	b, low := prefix6.Addr().As16(), a.As4()
	copy(b[12:], low[:])
	return netip.AddrFrom16(b)
}

// in4 returns the one of ours that stands for the same as an address of IPv6. Others it returns as
// they are.
func in4(a netip.Addr) netip.Addr {
	if a = a.Unmap(); !prefix6.Contains(a) {
		return a
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// nth returns an address of a range.
func nth(in netip.Prefix, i int) netip.Addr {
	a := in.Addr().As4()
	a[2], a[3] = byte(i>>8), byte(i)
	return netip.AddrFrom4(a)
}

// names is the names that one run has asked for. Each has an address that stands for it, to this
// run alone: no run holds a real one.
type names struct {
	hasIPv6 bool                       // the run has it
	inUse   func() map[netip.Addr]bool // addresses to which there are flows; nil for none

	mu      sync.Mutex
	address recent[netip.Addr]
	name    map[netip.Addr]string
	last    int // the latest address
	refused recent[struct{}]
	ports   recent[struct{}] // that were refused
}

// addressOf returns the address that stands for a name, or false if the run has asked for too many.
func (n *names) addressOf(name string) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.address.get(name); ok {
		return a, true
	}
	inUse := sync.OnceValue(func() map[netip.Addr]bool {
		if n.inUse == nil {
			return nil
		}
		return n.inUse()
	})
	ok := n.address.hasRoom(func(a netip.Addr) bool {
		if inUse()[a] {
			return false
		}
		delete(n.name, a)
		return true
	})
	if !ok {
		return netip.Addr{}, false
	}
	if n.name == nil {
		n.name = map[netip.Addr]string{}
	}
	a := n.unused()
	n.address.add(name, a)
	n.name[a] = name
	return a, true
}

// unused returns an address that stands for no name, of which the one that did so latest is used
// last, so that who still has it is refused.
func (n *names) unused() (a netip.Addr) {
	for taken := true; taken; _, taken = n.name[a] {
		n.last = n.last%maxNamed + 1
		a = nth(nameRange, n.last)
	}
	return a
}

// nameOf returns the name that an address stands for.
func (n *names) nameOf(a netip.Addr) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.name[a]
	if ok {
		n.address.get(name)
	}
	return name, ok
}

// refuse notes that a name was refused and reports whether that is news. Of a run that asks for too
// many it is none.
func (n *names) refuse(name string) bool { return n.isNews(&n.refused, name) }

// refusePort is refuse for a port of an address.
func (n *names) refusePort(over protocol, to netip.AddrPort) bool {
	return n.isNews(&n.ports, fmt.Sprint(over, in4(to.Addr()), to.Port()))
}

func (n *names) isNews(refused *recent[struct{}], what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := refused.get(what); known || !refused.hasRoom(func(struct{}) bool { return true }) {
		return false
	}
	refused.add(what, struct{}{})
	return true
}

// How long a run may keep an answer, in seconds. An address stands for its name for longer; runs
// come and go.
const (
	nameTTL = 300
	runTTL  = 1
)

// maxAnswers and maxAnswers6 bound how many runs of one name an answer has, of 16 and 28 bytes
// each: a reply over UDP has 512 (RFC 1035, section 2.3.4).
const maxAnswers, maxAnswers6 = 14, 8

// answer answers a query of DNS. It asks nobody: runs of the network have their addresses, what is
// listed has one of ours, and all else does not exist. Addresses of ours have the names that they
// stand for, and those of the runs that whose knows. It returns the name if that was refused, and
// nothing for what is no query.
func (c *Config) answer(query []byte, n *names, runs func(name string) (found []netip.Addr, own bool), whose func(netip.Addr) string) (reply []byte, refused string) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response || h.OpCode != 0 {
		return nil, ""
	}
	out := dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	q, err := p.Question()
	if err != nil {
		out.RCode = dnsmessage.RCodeFormatError
		return encode(out, nil, 0, nil), ""
	}
	name := canonical(q.Name.String())
	if a, ok := reversed(name); ok && q.Type == dnsmessage.TypePTR && q.Class == dnsmessage.ClassINET && isOurs(a) {
		host, ok := n.nameOf(in4(a))
		if !ok {
			host = whose(in4(a))
		}
		found, err := dnsmessage.NewName(host + ".")
		if host == "" || err != nil {
			out.RCode = dnsmessage.RCodeNameError
			return encode(out, &q, 0, nil), ""
		}
		return encode(out, &q, runTTL, []dnsmessage.ResourceBody{&dnsmessage.PTRResource{PTR: found}}), ""
	}
	found, own := runs(strings.TrimSuffix(name, internal))
	ttl := uint32(runTTL)
	hasType := q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeAAAA && n.hasIPv6
	switch {
	case q.Class != dnsmessage.ClassINET:
		out.RCode, found = dnsmessage.RCodeNotImplemented, nil
	case len(found) > 0:
		if !hasType {
			found = nil
		}
	case !spec.IsName(name) || !c.isListed(name, own):
		// Not RCodeRefused, at which programs ask again.
		out.RCode, refused = dnsmessage.RCodeNameError, name
		if !spec.IsName(name) { // it may end up in somebody's log
			refused = strings.Trim(strconv.QuoteToASCII(name), `"`)
		}
	case hasType:
		ttl = nameTTL
		if a, ok := n.addressOf(name); ok {
			found = []netip.Addr{a}
		} else {
			out.RCode = dnsmessage.RCodeServerFailure
		}
	}
	return encode(out, &q, ttl, answersOf(q.Type, found)), refused
}

// reversed returns the address that a name of RFC 1035, section 3.5, or RFC 3596, section 2.5,
// stands for.
func reversed(name string) (a netip.Addr, ok bool) {
	if labels, is4 := strings.CutSuffix(name, ".in-addr.arpa"); is4 {
		parts := strings.Split(labels, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	labels, is6 := strings.CutSuffix(name, ".ip6.arpa")
	digits := strings.Split(labels, ".")
	slices.Reverse(digits)
	b, err := hex.DecodeString(strings.Join(digits, ""))
	if !is6 || len(digits) != 32 || err != nil || len(b) != 16 {
		return a, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}

// isOurs reports whether an address is of a run, or stands for a name.
func isOurs(a netip.Addr) bool {
	a = in4(a)
	return runRange.Contains(a) || nameRange.Contains(a)
}

// internal is the domain of the network's runs, which may be left out.
const internal = ".internal"

// answersOf returns addresses as answers to a question of the type.
func answersOf(kind dnsmessage.Type, list []netip.Addr) (answers []dnsmessage.ResourceBody) {
	most := maxAnswers
	if kind == dnsmessage.TypeAAAA {
		most = maxAnswers6
	}
	for _, a := range list[:min(len(list), most)] {
		if kind == dnsmessage.TypeAAAA {
			answers = append(answers, &dnsmessage.AAAAResource{AAAA: in6(a).As16()})
		} else {
			answers = append(answers, &dnsmessage.AResource{A: a.As4()})
		}
	}
	return answers
}

func encode(h dnsmessage.Header, q *dnsmessage.Question, ttl uint32, answers []dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{Header: h}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	for _, body := range answers {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: ttl}, Body: body})
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
