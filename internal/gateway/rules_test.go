package gateway

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHosts(t *testing.T) {
	var c Config
	c.AllowHost("API.Example.org.", Ports{TCP: Spans(443)})
	c.AllowHost("*.wild.example", Ports{TCP: Spans(80, 443)})
	c.AllowHost("Bücher.example", Ports{TCP: Spans(80)})
	c.AllowHost("*.straße。example", Ports{TCP: Spans(80)})
	require.NoError(t, checkRules(&c))
	for _, test := range []struct {
		name string
		port uint16
		rule string
	}{
		{"api.example.org", 443, "api.example.org"},
		{"api.example.org", 80, ""},
		{"example.org", 443, ""},
		{"x.api.example.org", 443, ""},
		{"xapi.example.org", 443, ""},
		{"a.wild.example", 80, "*.wild.example"},
		{"a.b.wild.example", 443, "*.wild.example"},
		{"wild.example", 443, ""},
		{"notwild.example", 443, ""},
		{"a.wild.example.evil.example", 443, ""},
		{"xn--bcher-kva.example", 80, "xn--bcher-kva.example"},
		{"a.xn--strae-oqa.example", 80, "*.xn--strae-oqa.example"},
	} {
		rule, ok := c.ruleForName(test.name, false, test.port)
		require.Equal(t, test.rule, rule, test.name)
		require.Equal(t, test.rule != "", ok, test.name)
	}
	require.Equal(t, []uint16{80, 443}, each(c.all().TCP))
	c.AllowHost("*", Ports{TCP: Spans(1)})
	require.True(t, c.isListed("anything.at.all", false))
}

func checkRules(c *Config) error {
	c.MaxConns, c.MaxNewConns = DefaultMaxConns, DefaultMaxNewConns
	return c.Check()
}

func TestWrongRules(t *testing.T) {
	for pattern, why := range map[string]string{
		"": "no host name", "a b": "no host name", "a..b": "no host name", "*..": "no host name", "a.*": "no host name", "*a.b": "no host name",
		"bü cher.example": "no host name", "*.*.bücher.example": "no host name", "\xff.example": "no host name", "127.0.0.1": "AllowCIDR", "[::1]": "AllowCIDR", "http://a": "no host name",
	} {
		var c Config
		c.AllowHost(pattern, Ports{TCP: Spans(80)})
		require.ErrorContains(t, checkRules(&c), why, pattern)
	}
	for text, why := range map[string]string{"": "neither", "a.b": "neither", "10.0.0.0/33": "neither", "fe80::1%eth0": "zone", "::ffff:10.0.0.1": "IPv4 as IPv4", "::ffff:10.0.0.0/104": "IPv4 as IPv4"} {
		var c Config
		c.AllowCIDR(text, Ports{TCP: Spans(80)})
		require.ErrorContains(t, checkRules(&c), why, text)
	}
	for _, ports := range [][]int{nil, {0}, {-1}, {65536}} {
		var c Config
		c.AllowHost("a.b", Ports{TCP: Spans(ports...)})
		c.AllowCIDR("10.0.0.1", Ports{TCP: Spans(ports...)})
		err := checkRules(&c)
		require.ErrorContains(t, err, "AllowHost: \"a.b\"")
		require.ErrorContains(t, err, "AllowCIDR: \"10.0.0.1\"")
	}
	var c Config
	for port := range maxPorts + 1 {
		c.AllowHost("a.b", Ports{TCP: Spans(2*port + 1)})
	}
	require.ErrorContains(t, checkRules(&c), "201 ranges of ports")
}

// What no rule for the internet may lead to, in all the ways in which it can be written.
func TestSpecialAddresses(t *testing.T) {
	var none, internet Config
	internet.AllowCIDR("0.0.0.0/0", Ports{TCP: Spans(80)})
	internet.AllowCIDR("::/0", Ports{TCP: Spans(80)})
	for _, text := range []string{
		"127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.169.254",
		"168.63.129.16", "192.0.0.8", "198.18.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1",
		"::", "::1", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "2002:7f00:1::", "2001::1", "100::1", "4000::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1",
	} {
		for _, c := range []*Config{&none, &internet} {
			_, err := c.ruleFor(netip.AddrPortFrom(netip.MustParseAddr(text), 80))
			var r *refusal
			require.ErrorAs(t, err, &r, text)
		}
	}
	for _, text := range []string{"1.1.1.1", "::ffff:1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "64:ff9b::101:101", "2606:4700::1111", "2a00::1"} {
		rule, err := none.ruleFor(netip.AddrPortFrom(netip.MustParseAddr(text), 80))
		require.NoError(t, err, text)
		require.Empty(t, rule)
		rule, err = internet.ruleFor(netip.AddrPortFrom(netip.MustParseAddr(text), 80))
		require.NoError(t, err, text)
		require.Contains(t, rule, "/0")
	}
}

// What is special can be named: by itself, or by a part of its block.
func TestNamedAddresses(t *testing.T) {
	var c Config
	for _, text := range []string{"10.2.0.0/16", "169.254.169.254", "fd00:ec2::254", "127.0.0.1", "127.0.1.0/24", "192.0.0.0/8", "64:ff9b::/96", "64:ff9b::c0a8:0/112"} {
		c.AllowCIDR(text, Ports{TCP: Spans(80)})
	}
	require.NoError(t, checkRules(&c))
	for text, want := range map[string]string{
		"10.2.3.4": "10.2.0.0/16", "10.3.0.1": "", "169.254.169.254": "169.254.169.254/32", "169.254.169.253": "", "fd00:ec2::254": "fd00:ec2::254/128",
		"127.0.0.1": "127.0.0.1/32", "::ffff:127.0.0.1": "127.0.0.1/32",
		"127.0.1.1":   "", // this machine's own
		"192.168.1.1": "", // the rule is not for its block
		"192.1.1.1":   "192.0.0.0/8",
		// By NAT64, what is special is so as well.
		"64:ff9b::101:101": "64:ff9b::/96", "64:ff9b::a9fe:a9fe": "", "64:ff9b::7f00:1": "", "64:ff9b::c0a8:1": "64:ff9b::c0a8:0/112",
	} {
		rule, err := c.ruleFor(netip.AddrPortFrom(netip.MustParseAddr(text), 80))
		require.Equal(t, want, rule, text)
		require.Equal(t, want == "", err != nil, text)
		_, err = c.ruleFor(netip.AddrPortFrom(netip.MustParseAddr(text), 81))
		require.Equal(t, text != "192.1.1.1" && text != "64:ff9b::101:101", err != nil, text)
	}
}
