//go:build linux

package function_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
)

var reads = function.New("reads", func(context.Context, struct{ R io.Reader }) (int, error) { return 0, nil })

// An encoded call is a call: its result, its errors and its limits.
func TestCallEncoded(t *testing.T) {
	ctx := testkit.Deadline(t)
	require.Equal(t, "parse", parse.Name())
	require.Equal(t, int64(128*sandbox.MiB), parse.Limits().Memory)
	in, err := parse.Encode("a=1 b=2")
	require.NoError(t, err)
	result, err := parse.CallEncoded(ctx, in)
	require.NoError(t, err)
	out, err := parse.Decode(ctx, result)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, out)

	in, err = parse.Encode("a=1 b")
	require.NoError(t, err)
	_, err = parse.CallEncoded(ctx, in)
	var failed *function.Error
	require.ErrorAs(t, err, &failed)
	require.Equal(t, `"b" has no value`, failed.Text)
	_, err = parse.CallEncoded(ctx, []byte{0xff})
	require.ErrorAs(t, err, &failed, "decoded there")

	small := parse.With(function.MessageLimit(1000))
	_, err = small.Encode(strings.Repeat("a=1 ", 1000))
	require.ErrorIs(t, err, function.ErrMessageLimit)
	in, err = parse.Encode(strings.Repeat("a=1 ", 1000))
	require.NoError(t, err)
	_, err = small.CallEncoded(ctx, in)
	require.ErrorIs(t, err, function.ErrMessageLimit)
	for _, hostile := range []string{"", "\xff", "\xa0", "\xa0\x01", "\xa1\x66Fields\x81\x00\xa0", "\xa0\xba\x7f\xff\xff\xff"} {
		_, err := parse.Decode(ctx, []byte(hostile))
		require.Error(t, err, "%q", hostile)
	}
	_, err = reads.Encode(struct{ R io.Reader }{})
	require.ErrorIs(t, err, errors.ErrUnsupported)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = parse.CallEncoded(ended, in)
	require.ErrorIs(t, err, context.Canceled)
}
