//go:build linux

package compile

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/cellkit/sandbox/internal/program"
)

// Explain returns the plan and the program of its command as text, a line for each call.
func (p *Plan) Explain(command *program.Program, hostIDs bool) string {
	var text strings.Builder
	fmt.Fprintf(&text, "# %s/%s\n", runtime.GOOS, runtime.GOARCH)
	if p.Copies != nil {
		fmt.Fprintf(&text, "## once per cell: a root with %d files of the host's programs, in %d calls\n", p.Copies.Count(), p.Copies.Copy.Len())
	}
	text.WriteString("## once per cell: assemble what runs copy\n" + p.Template.Explain())
	flags := "CLONE_NEWUSER|CLONE_NEWPID|CLONE_PIDFD"
	if hostIDs {
		flags = "CLONE_NEWPID|CLONE_PIDFD"
	}
	text.WriteString("## every run: clone3(" + flags + "), then\n" + p.Run.Explain())
	text.WriteString("## what it receives\n" + command.Explain())
	return text.String()
}
