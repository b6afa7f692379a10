package cell

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOwnSockets leaves out what other namespaces change.
func TestOwnSockets(t *testing.T) {
	text := func(used, inuse, orphan, tw, alloc, mem, frags string) []byte {
		return ownSockets([]byte("sockets: used " + used + "\nTCP: inuse " + inuse + " orphan " + orphan + " tw " + tw + " alloc " + alloc + " mem " + mem +
			"\nUDP: inuse 0 mem " + mem + "\nFRAG: inuse " + frags + " memory 0\n"))
	}
	born := text("0", "0", "0", "0", "1", "23", "0")
	require.Equal(t, "sockets: used 0 \nTCP: inuse 0 tw 0 \nUDP: inuse 0 \nFRAG: inuse 0 memory 0 \n", string(born))
	require.Equal(t, born, text("0", "0", "7", "0", "1234", "99999", "0"))
	for _, other := range [][]byte{text("1", "0", "0", "0", "1", "23", "0"), text("0", "1", "0", "0", "1", "23", "0"), text("0", "0", "0", "1", "1", "23", "0"), text("0", "0", "0", "0", "1", "23", "1")} {
		require.NotEqual(t, born, other)
	}
}

// TestNetworks keeps namespaces that come back as they were, and makes fewer where none does.
func TestNetworks(t *testing.T) {
	s := networks{score: maxScore, all: 1}
	n := &Network{of: &s}
	s.give(n)
	require.Equal(t, []*Network{n}, s.idle)
	for range maxScore {
		s.all++
		s.drop(&Network{of: &s})
	}
	require.Zero(t, s.score)
	require.Equal(t, 1, s.all)
	s.close()
	s.give(&Network{of: &s})
	require.Empty(t, s.idle, "the cell has ended")
}
