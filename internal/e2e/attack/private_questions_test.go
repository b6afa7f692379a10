//go:build linux

package attack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("private-questions", askAll) }

// questionTypes are what one asks of names.
var questionTypes = []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeNS, dnsmessage.TypeCNAME, dnsmessage.TypePTR, dnsmessage.TypeMX, dnsmessage.TypeTXT, dnsmessage.TypeSRV,
	10 /* NULL */, 65 /* HTTPS */, dnsmessage.TypeALL}

// askAll asks each of the servers, as "udp4/198.18.0.1:53", for all types of the names in the first
// argument, and prints the server, the name and the type of each question that has an answer.
func askAll(args []string) error {
	var asking sync.WaitGroup
	for _, server := range args[1:] {
		ask := func(q dnsmessage.Question) {
			if askDNS(server, q) == nil {
				fmt.Println(server, strings.TrimSuffix(q.Name.String(), "."), strings.TrimPrefix(q.Type.String(), "Type"))
			}
		}
		asking.Go(func() {
			for name := range strings.SplitSeq(args[0], ",") {
				for _, kind := range questionTypes {
					for _, class := range []dnsmessage.Class{dnsmessage.ClassINET, dnsmessage.ClassCHAOS} {
						q := dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: class}
						if strings.HasPrefix(server, "tcp") {
							ask(q)
						} else { // which may stay without any answer
							asking.Go(func() { ask(q) })
						}
					}
				}
			}
		})
	}
	asking.Wait()
	return nil
}

// askDNS succeeds if the answer has records.
func askDNS(server string, q dnsmessage.Question) error {
	query, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{q}}).Pack()
	if err != nil {
		return err
	}
	network, at := runs.Over("udp", server)
	conn, err := net.DialTimeout(network, at, answerTime)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	reply := make([]byte, 1<<16)
	n := 0
	if strings.HasPrefix(network, "tcp") { // RFC 1035, section 4.2.2
		var size [2]byte
		_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...))
		if err == nil {
			_, err = io.ReadFull(conn, size[:])
		}
		if n = int(binary.BigEndian.Uint16(size[:])); err == nil {
			_, err = io.ReadFull(conn, reply[:n])
		}
	} else if _, err = conn.Write(query); err == nil {
		n, err = conn.Read(reply)
	}
	var m dnsmessage.Message
	if err == nil {
		err = m.Unpack(reply[:n])
	}
	if err == nil && len(m.Answers) == 0 {
		err = errors.New("no records")
	}
	return err
}

// Names are no way out: not those that are not listed, with data in their labels, nor other records
// of those that are, over UDP and TCP, of the resolver and of servers elsewhere. Nobody is asked.
func TestAttackRootlessPrivateQuestions(t *testing.T) {
	data := strings.Repeat("secret", 10) + ".evil.test"
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", data: "127.0.0.1", "x.one.test": "127.0.0.1"})
	names := strings.Join([]string{data, "x.one.test", "wild.test", "one.test", "data.wild.test", "version.bind"}, ",")
	zoneAt := "udp4/" + zone.Address()
	require.Contains(t, runs.Output(t, runs.Helper("private-questions", names, zoneAt).With(sandbox.WithNetwork(sandbox.NetworkHost))), zoneAt+" "+data+" A", "the control")
	require.Contains(t, zone.Asked(), data)
	zone.Forget()

	var mu sync.Mutex
	refused := map[string]int{}
	n, err := sandbox.NewNetwork(sandbox.AllowHost("one.test", 80), sandbox.AllowHost("*.wild.test", 80), sandbox.MaxNewConns(10_000), sandbox.NetworkResolver(zone.Resolver()), sandbox.NetworkObserver(func(c sandbox.Conn) {
		mu.Lock()
		defer mu.Unlock()
		if c.Port == 0 {
			refused[c.Name]++
		}
	}))
	require.NoError(t, err)
	defer n.Close()
	to, want := []string{zoneAt}, []string{}
	for i, at := range resolvers() {
		for _, protocol := range []string{"udp", "tcp"} {
			server := fmt.Sprintf("%s%d/%s", protocol, []int{4, 6}[i], at)
			to = append(to, server)
			if protocol == "udp" && i > 0 {
				continue
			}
			for _, name := range []string{"one.test", "data.wild.test"} {
				for _, kind := range []string{"A", "AAAA"}[:len(resolvers())] {
					want = append(want, fmt.Sprint(server, " ", name, " ", kind))
				}
			}
		}
	}
	for _, protocol := range []string{"udp", "tcp"} {
		to = append(to, protocol+"4/8.8.8.8:53", protocol+"4/198.19.0.1:53")
		if runs.HasIPv6() {
			to = append(to, protocol+"6/[2001:4860:4860::8888]:53", protocol+"6/[fde0:6be0:7e22::c613:1]:53")
		}
	}
	got := strings.Split(runs.Output(t, runs.Helper("private-questions", append([]string{names}, to...)...).With(sandbox.WithNetwork(n.As("attacker")))), "\n")
	slices.Sort(got)
	slices.Sort(want)
	require.Equal(t, want, got)
	require.NoError(t, n.Close(), "waits until all is told")
	require.Empty(t, zone.Asked())
	require.Equal(t, map[string]int{data: 1, "x.one.test": 1, "wild.test": 1, "version.bind": 1}, refused)
}
