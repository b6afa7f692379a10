package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/cellkit/sandbox"
)

// inject parses HOST=HEADER:VARIABLE. The value comes from the environment, as everybody on the
// machine can read command lines.
func inject(s *settings, value string) error {
	host, rest, _ := strings.Cut(value, "=")
	header, variable, _ := strings.Cut(rest, ":")
	if host == "" || header == "" || variable == "" {
		return fmt.Errorf("%q is not HOST=HEADER:VARIABLE, such as api.github.com=Authorization:TOKEN", value)
	}
	secret, ok := os.LookupEnv(variable)
	if !ok {
		return fmt.Errorf("%s is not set here: set it to the value of the header", variable)
	}
	s.private = append(s.private, sandbox.InjectHeader(host, header, secret))
	return nil
}
