package cli

// -image, for the command that knows images.

import (
	"context"
	"errors"
	"fmt"

	"github.com/cellkit/sandbox"
)

// Image is a container image that has been opened.
type Image interface {
	// Options returns the image's root and the other options that the image sets for its runs.
	Options() []sandbox.Option
	// Command runs the image's entry point with the given arguments, or with the image's own if
	// there are none.
	Command(args ...string) sandbox.Option
	Close() error
}

// OpenImage opens the image that -image names, for the user that -user names, or for the image's
// own if that is "". It is nil in the command that does not know images.
var OpenImage func(ctx context.Context, ref, user string) (Image, error)

func image(s *settings, ref string) error {
	if OpenImage == nil {
		return errors.New("this command knows no images: use the one of go install github.com/cellkit/sandbox/image/cmd/sandbox@latest")
	}
	s.image = ref
	return nil
}

// openImage puts the options of an image before those of the flags.
func (s *settings) openImage(ctx context.Context) (done func(), err error) {
	if s.image == "" {
		return func() {}, nil
	}
	img, err := OpenImage(ctx, s.image, s.user)
	if err != nil {
		return nil, fmt.Errorf("-image: %w", err)
	}
	s.opts = append(img.Options(), s.opts...)
	if !s.hold {
		s.add(img.Command(s.command...))
	}
	return func() { _ = img.Close() }, nil
}
