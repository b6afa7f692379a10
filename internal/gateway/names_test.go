package gateway

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

func queryFor(t testing.TB, name string, kind dnsmessage.Type) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	require.NoError(t, err)
	return b
}

func listing(hosts ...string) *Config {
	c := new(Config)
	for _, h := range hosts {
		c.AllowHost(h, Ports{TCP: Spans(443)})
	}
	return c
}

func nobody(string) ([]netip.Addr, bool) { return nil, false }

func nameless(netip.Addr) string { return "" }

func TestAnswers(t *testing.T) {
	c, n := listing("a.example", "*.b.example", "*.internal", "out"), new(names)
	db := netip.MustParseAddr("198.18.0.9")
	runs := func(name string) ([]netip.Addr, bool) {
		if name == "db" {
			return []netip.Addr{db}, true
		}
		return nil, name == "down" || name == "down.b.example" || name == "out"
	}
	whose := func(a netip.Addr) string {
		if a == db {
			return "db"
		}
		return ""
	}
	for _, test := range []struct {
		name    string
		kind    dnsmessage.Type
		code    dnsmessage.RCode
		answer  string
		refused string
	}{
		{"a.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.19.0.1", ""},
		{"A.EXAMPLE.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.19.0.1", ""},
		{"x.b.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.19.0.2", ""},
		{"a.example.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, "", ""},
		{"a.example.", dnsmessage.TypeTXT, dnsmessage.RCodeSuccess, "", ""},
		{"a.example.", 65, dnsmessage.RCodeSuccess, "", ""}, // HTTPS
		{"b.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "", "b.example"},
		{"secret.evil.example.", dnsmessage.TypeTXT, dnsmessage.RCodeNameError, "", "secret.evil.example"},
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, "", ""},
		{"9.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeSuccess, "db.", ""},
		{"9.0.0.0.2.1.6.c.0.0.0.0.0.0.0.0.0.0.0.0.2.2.e.7.0.e.b.6.0.e.d.f.ip6.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeSuccess, "db.", ""},
		{"1.0.19.198.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeSuccess, "a.example.", ""},
		{"9.0.18.198.in-addr.arpa.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "", "9.0.18.198.in-addr.arpa"},
		{"1.1.1.1.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, "", "1.1.1.1.in-addr.arpa"},
		{"x.18.198.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, "", "x.18.198.in-addr.arpa"},
		{"db.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.9", ""},
		{"db.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.9", ""},
		{"db.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, "", ""},
		{"web.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "", "web"},
		{"down.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "", "down"},
		{"down.internal.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "", "down.internal"},
		{"down.b.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError, "", "down.b.example"},
		{"out.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.19.0.3", ""},
		{"x.corp.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.19.0.4", ""},
		{".", dnsmessage.TypeNS, dnsmessage.RCodeNameError, "", ""},
	} {
		reply, refused := c.answer(queryFor(t, test.name, test.kind), n, runs, whose)
		var m dnsmessage.Message
		require.NoError(t, m.Unpack(reply), test.name)
		require.Equal(t, test.code, m.RCode, test.name)
		require.Equal(t, uint16(7), m.ID)
		require.Equal(t, test.refused, refused)
		if test.answer == "" {
			require.Empty(t, m.Answers, test.name)
			continue
		}
		require.Len(t, m.Answers, 1, test.name)
		if ptr, ok := m.Answers[0].Body.(*dnsmessage.PTRResource); ok {
			require.Equal(t, test.answer, ptr.PTR.String())
			continue
		}
		require.Equal(t, netip.MustParseAddr(test.answer).As4(), m.Answers[0].Body.(*dnsmessage.AResource).A, test.name)
	}
	name, ok := n.nameOf(netip.MustParseAddr("198.19.0.2"))
	require.True(t, ok)
	require.Equal(t, "x.b.example", name)
	_, ok = n.nameOf(netip.MustParseAddr("198.19.0.5"))
	require.False(t, ok)
}

// A run that asks for ever more names gets no more of this process's memory. One that does so for
// long gets answers nevertheless, and no address soon again.
func TestTooManyNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, asked := new(names), 0
		ask := func(times int) (answers int) {
			for range times {
				asked++
				if _, ok := n.addressOf(fmt.Sprintf("x%d.b.example", asked)); ok {
					answers++
				}
			}
			return answers
		}
		require.Equal(t, maxRecent, ask(maxRecent+10))
		reply, _ := listing("*.b.example").answer(queryFor(t, "y.b.example.", dnsmessage.TypeA), n, nobody, nameless)
		var m dnsmessage.Message
		require.NoError(t, m.Unpack(reply))
		require.Equal(t, dnsmessage.RCodeServerFailure, m.RCode)
		time.Sleep(nameTTL * time.Second)
		require.Zero(t, ask(10), "the run may have the answers")
		used, flowing := nth(nameRange, 1), nth(nameRange, 2)
		_, ok := n.nameOf(used)
		require.True(t, ok)
		n.inUse = func() map[netip.Addr]bool { return map[netip.Addr]bool{flowing: true} }
		time.Sleep(keep - nameTTL*time.Second + time.Second)
		require.Equal(t, maxRecent-2, ask(maxRecent))
		_, ok = n.nameOf(nth(nameRange, 3))
		require.False(t, ok, "it gave way")
		time.Sleep(keep)
		_, _ = n.nameOf(used)
		time.Sleep(time.Second)
		for range maxNamed/maxRecent + 1 { // once around
			require.Equal(t, maxRecent-2, ask(maxRecent))
			require.Equal(t, "x2.b.example", n.name[flowing])
			name, ok := n.nameOf(used)
			require.True(t, ok)
			require.Equal(t, "x1.b.example", name)
			time.Sleep(keep)
			_, _ = n.nameOf(used)
			time.Sleep(time.Second)
		}
	})
}

// The same of what is refused, names and ports each by themselves.
func TestTooManyRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, told := new(names), 0
		refuse := func(what string) {
			if n.refuse(what) {
				told++
			}
		}
		for i := range maxRecent + 10 {
			refuse(fmt.Sprint(i))
		}
		require.Equal(t, maxRecent, told)
		require.True(t, n.refusePort(overTCP, netip.MustParseAddrPort("192.0.2.1:1")))
		time.Sleep(keep)
		refuse("1")
		time.Sleep(time.Second)
		refuse("1")
		refuse("another")
		require.Equal(t, maxRecent+1, told)
		require.Len(t, n.refused.all, 2)
	})
}

// More runs of one name than an answer has room for.
func TestManyRuns(t *testing.T) {
	runs := func(string) (list []netip.Addr, own bool) {
		for i := range 1000 {
			list = append(list, nth(runRange, firstRun+i))
		}
		return list, true
	}
	reply, _ := new(Config).answer(queryFor(t, "db.", dnsmessage.TypeA), new(names), runs, nameless)
	require.LessOrEqual(t, len(reply), 512)
	var m dnsmessage.Message
	require.NoError(t, m.Unpack(reply))
	require.Len(t, m.Answers, maxAnswers)
}

// FuzzAnswer answers anything: it must neither panic nor answer with what is not ours.
func FuzzAnswer(f *testing.F) {
	f.Add(queryFor(f, "a.example.", dnsmessage.TypeA))
	f.Add(queryFor(f, "evil.example.", dnsmessage.TypeTXT))
	f.Add([]byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01")) // a name that points to itself
	f.Add([]byte{})
	c := listing("*.example")
	f.Fuzz(func(t *testing.T, query []byte) {
		reply, _ := c.answer(query, new(names), nobody, nameless)
		if reply == nil {
			return
		}
		var m dnsmessage.Message
		require.NoError(t, m.Unpack(reply))
		require.True(t, m.Response)
		for _, a := range m.Answers {
			require.True(t, nameRange.Contains(netip.AddrFrom4(a.Body.(*dnsmessage.AResource).A)))
		}
	})
}
