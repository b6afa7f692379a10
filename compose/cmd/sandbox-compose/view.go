package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/cellkit/sandbox/compose"
)

// view shows what the services of a project are doing, again and again.
type view struct {
	out    io.Writer
	asJSON bool
	live   bool   // each picture takes the place of the one before
	last   string // picture
}

const viewPause = 500 * time.Millisecond

// show prints a picture, unless it is as the last one.
func (v *view) show(now []compose.Status) error {
	var b bytes.Buffer
	if v.asJSON {
		if now == nil {
			now = []compose.Status{}
		}
		if err := printJSON(&b, now); err != nil {
			return err
		}
	} else {
		table(&b, now, v.live)
	}
	if b.String() == v.last {
		return nil
	}
	v.last = b.String()
	if v.live {
		// From the top, and clear the rest.
		_, err := fmt.Fprint(v.out, "\x1b[H\x1b[J"+v.last)
		return err
	}
	_, err := fmt.Fprint(v.out, v.last)
	return err
}

// pause reports whether another picture is wanted.
func (v *view) pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(viewPause):
		return true
	}
}

// table prints a picture. A live one has times and sizes that change by themselves.
func table(b *bytes.Buffer, now []compose.Status, live bool) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "SERVICE\tSTATE\tSTARTS")
	if live {
		fmt.Fprint(w, "\tFOR\tMEMORY")
	}
	fmt.Fprintln(w, "\tPORTS")
	for _, s := range now {
		fmt.Fprintf(w, "%s\t%s\t%d", s.Name(), stateText(s), s.Starts)
		if live {
			fmt.Fprintf(w, "\t%v\t%s", time.Since(s.Since).Truncate(time.Second), memoryText(s))
		}
		fmt.Fprintf(w, "\t%s\n", strings.Join(s.Ports, ", "))
	}
	_ = w.Flush() // to memory
	for _, s := range now {
		if s.Error != "" {
			why, _, _ := strings.Cut(s.Error, "\n")
			fmt.Fprintln(b, why)
		}
	}
}

func stateText(s compose.Status) string {
	switch {
	case s.State == compose.Fetching && s.Layers > 0 && s.Total > 0:
		return fmt.Sprintf("fetching %d/%d, %d %%", s.Layer, s.Layers, 100*s.Fetched/s.Total)
	case s.Health == "healthy":
		return string(s.State) + " (healthy)"
	}
	return string(s.State)
}

func memoryText(s compose.Status) string {
	if s.Memory == 0 {
		return "-"
	}
	return units.BytesSize(float64(s.Memory))
}

// isTerminal reports whether what is written there is seen at once.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
