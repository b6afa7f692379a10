package sandboxtest

import (
	"bytes"
	"testing"
)

// replay reports the outcome of a test in its sandbox as that of t, except that it passed.
func (r *result) replay(t *testing.T) {
	t.Helper()
	for _, i := range r.items {
		switch {
		case i.sub != nil:
			t.Run(i.sub.name[len(r.name)+1:], i.sub.replay)
		case i.key != "":
			t.Attr(i.key, i.value)
		default:
			_, _ = t.Output().Write(unindented(i.text))
		}
	}
	if r.problem != "" {
		t.Errorf("sandboxtest: in its sandbox: %s", r.problem)
	}
	switch r.status {
	case skipped:
		t.SkipNow()
	case passed:
	default:
		t.Fail()
	}
}

// unindented removes from the lines of a log the indentation that they will get again.
func unindented(text []byte) []byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	for i, line := range lines {
		lines[i] = bytes.TrimPrefix(line, []byte("    "))
	}
	return bytes.Join(lines, nil)
}
