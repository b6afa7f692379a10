package gateway

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A raw socket gets the answers to all that ask an address. Those to another with the same id are
// not for the run.
func TestPingAnswers(t *testing.T) {
	const id = 7
	asked := append(make([]byte, echoHead), "content"...)
	answer := func(p *pinger) []byte {
		b := p.request(asked)
		b[0] = echoTypes[unix.AF_INET][1]
		return slices.Concat(append([]byte{0x45}, make([]byte, 19)...), b)
	}
	p := pinger{family: unix.AF_INET, raw: true, id: 9, mark: []byte("12345678")}
	other := pinger{family: unix.AF_INET, raw: true, id: 9, mark: []byte("12345679")}
	require.Equal(t, echo(unix.AF_INET, 0, id, asked), p.passed(answer(&p), unix.AF_INET, id))
	require.Nil(t, p.passed(answer(&other), unix.AF_INET, id))
	require.Nil(t, p.passed(answer(&p)[:40], unix.AF_INET, id), "cut")
	require.Nil(t, p.passed([]byte{0x4f}, unix.AF_INET, id), "no header")
}
