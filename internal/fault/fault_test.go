package fault

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestErrorsOfImages name what the image says, and have the option that takes its place.
func TestErrorsOfImages(t *testing.T) {
	image := Subject{"WithUser", "image app: config field User: x"}
	err := errors.Join(Option("WithMemory", "wrong"), image.Wrong("there is %w", fs.ErrNotExist))
	require.EqualError(t, err, "sandbox: WithMemory: wrong\nsandbox: image app: config field User: x: there is file does not exist")
	require.ErrorIs(t, err, fs.ErrNotExist)
	wrong := &OptionError{}
	require.ErrorAs(t, image.Wrong("x"), &wrong)
	require.Equal(t, "WithUser", wrong.Option)
}
