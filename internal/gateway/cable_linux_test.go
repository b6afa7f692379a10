package gateway

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// packet returns one of IPv4 or IPv6 with its Ethernet header.
func packet(from, to netip.Addr) []byte {
	b := make([]byte, ethernetHead, 100)
	if from.Is4() {
		binary.BigEndian.PutUint16(b[12:], etherIP)
		b = append(b, make([]byte, 12)...)
	} else {
		binary.BigEndian.PutUint16(b[12:], etherIPv6)
		b = append(b, make([]byte, 8)...)
	}
	return append(append(b, from.AsSlice()...), to.AsSlice()...)
}

func TestCableAddresses(t *testing.T) {
	one, two := nth(runRange, 5), nth(runRange, 6)
	for _, p := range [][2]netip.Addr{{one, two}, {in6(one), in6(two)}} {
		b := packet(p[0], p[1])
		from, to, ok := addressesOf(b)
		require.True(t, ok)
		require.Equal(t, p, [2]netip.Addr{from, to})
		for n := range b {
			_, _, ok := addressesOf(b[:n])
			require.False(t, ok, "%d bytes", n)
		}
	}
	foreign := netip.MustParseAddr("2001:db8::c612:5")
	for _, p := range [][2]netip.Addr{{in6(one), foreign}, {foreign, in6(one)}, {netip.AddrFrom16(one.As16()), in6(two)}} {
		_, _, ok := addressesOf(packet(p[0], p[1]))
		require.False(t, ok, "%v", p)
	}
}

// What is from nobody of this gateway, or for one of its own, goes nowhere.
func TestCableBeyond(t *testing.T) {
	r := newRoster(&Config{})
	here, there := &gateway{roster: r}, &gateway{roster: r}
	there.cable.Store(&cable{})
	var all []*Member
	for _, g := range []*gateway{here, here, there} {
		m := &Member{gateway: g}
		require.NoError(t, r.add(m))
		all = append(all, m)
	}
	own, neighbour, far := all[0].address, all[1].address, all[2].address
	require.Same(t, there.cable.Load(), here.beyond(packet(own, far)))
	require.Same(t, there.cable.Load(), here.beyond(packet(in6(own), in6(far))))
	for _, p := range [][2]netip.Addr{{own, neighbour}, {far, own}, {far, far}, {own, resolver}, {resolver, far}, {own, netip.MustParseAddr("8.8.8.8")}} {
		require.Nil(t, here.beyond(packet(p[0], p[1])), "%v", p)
	}
	r.remove(all[2])
	require.Nil(t, here.beyond(packet(own, far)), "it has left")
}

// A frame whose packet is not whole, or is not within it, has none.
func TestCableFrames(t *testing.T) {
	frame := make([]byte, 1<<10)
	put := func(mac uint16, length, snap uint32) []byte {
		binary.NativeEndian.PutUint32(frame[4:], length)
		binary.NativeEndian.PutUint32(frame[8:], snap)
		binary.NativeEndian.PutUint16(frame[12:], mac)
		return packetOf(frame)
	}
	require.Len(t, put(100, 200, 200), 200+virtioHead)
	require.Nil(t, put(100, 300, 200))
	require.Nil(t, put(0, 200, 200))
	require.Nil(t, put(100, 1000, 1000))
}
