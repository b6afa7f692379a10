package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cellkit/sandbox/queue"
)

// sample is what top shows at a moment.
type sample struct {
	queue.Stats
	Tasks []running `json:"running_tasks"` // those that have run longest first
}

type running struct {
	queue.RunningTask
	Worker string `json:"worker"`
}

func top(e *env, args []string) error {
	every := e.flags.Duration("every", 2*time.Second, "how long between samples")
	most := e.flags.Int("n", 0, "end after so many samples; 0: one with -json, else until a signal comes or, on Linux, q is pressed")
	q, _, err := e.openFor(args, 0, 0, "")
	if err != nil {
		return err
	}
	*every = max(*every, 100*time.Millisecond)
	if e.json {
		return e.samples(q, max(*most, 1), *every)
	}
	screen, isTerminal := e.out.(*os.File)
	isTerminal = isTerminal && isScreen(screen)
	ctx := e.ctx
	if isTerminal { // these would end this before the terminal is as it was
		var ignore func()
		ctx, ignore = signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
		defer ignore()
	}
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	m := newMeter(time.Now())
	watching.Go(func() { m.watch(ctx, q) })
	if isTerminal {
		defer onKey(e.in, 'q', stop)()
		// The other screen of the terminal, without a cursor; and back.
		fmt.Fprint(e.out, "\x1b[?1049h\x1b[?25l")
		defer fmt.Fprint(e.out, "\x1b[?25h\x1b[?1049l")
	}
	for n := 1; ; n++ {
		s, err := take(ctx, q)
		if ctx.Err() != nil {
			return nil
		}
		var view bytes.Buffer
		if err != nil { // and go on: servers may come back
			fmt.Fprintln(&view, plain(err.Error()))
		} else {
			m.draw(&view, s)
		}
		if isTerminal {
			err = paint(screen, view.String())
		} else {
			_, err = e.out.Write(append(view.Bytes(), '\n'))
		}
		if err != nil || n == *most {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(*every):
		}
	}
}

// samples prints n samples as JSON.
func (e *env) samples(q *queue.Queue, n int, every time.Duration) error {
	for ; ; n-- {
		s, err := take(e.ctx, q)
		if err == nil {
			err = e.print(s)
		}
		if err != nil || n == 1 {
			return err
		}
		select {
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		case <-time.After(every):
		}
	}
}

// take takes a sample.
func take(ctx context.Context, q *queue.Queue) (s sample, err error) {
	s.Tasks = []running{} // not null in JSON
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if s.Stats, err = q.Stats(ctx); err != nil {
		return s, err
	}
	for w, err := range q.Workers(ctx) {
		if err != nil {
			return s, err
		}
		for _, t := range w.Tasks {
			s.Tasks = append(s.Tasks, running{t, w.Name})
		}
	}
	slices.SortFunc(s.Tasks, func(a, b running) int { return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.ID, b.ID)) })
	return s, nil
}

// paint draws a view in the place of the one before, as much of it as fits.
func paint(screen *os.File, view string) error {
	rows, columns := screenSize(screen)
	lines := strings.Split(strings.TrimSuffix(view, "\n"), "\n")
	lines = lines[:min(len(lines), rows)]
	for i, line := range lines {
		lines[i] = line[:min(len(line), columns)] + "\x1b[K" // all of it is ASCII
	}
	_, err := io.WriteString(screen, "\x1b[H"+strings.Join(lines, "\r\n")+"\x1b[J")
	return err
}

// meter counts tasks that end, by class.
type meter struct {
	mu    sync.Mutex
	ended map[string]int
	past  []counts // of the last half minute, the oldest first
}

type counts struct {
	at    time.Time
	ended map[string]int
}

const window = 30 * time.Second

func newMeter(now time.Time) *meter {
	return &meter{ended: map[string]int{}, past: []counts{{now, map[string]int{}}}}
}

func (m *meter) watch(ctx context.Context, q *queue.Queue) {
	for s, err := range q.Changes(ctx) {
		if err == nil && s.State.Ended() { // an error is one of all requests
			class, _, _ := strings.Cut(s.ID, ".")
			m.count(class)
		}
	}
}

func (m *meter) count(class string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ended) < 1000 || m.ended[class] > 0 { // submitters choose classes
		m.ended[class]++
	}
}

// rates returns how many tasks have ended, and how many a second lately.
func (m *meter) rates(now time.Time) (ended map[string]int, rate map[string]float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ended, rate = maps.Clone(m.ended), map[string]float64{}
	for len(m.past) > 1 && now.Sub(m.past[1].at) >= window {
		m.past = m.past[1:]
	}
	if took := now.Sub(m.past[0].at).Seconds(); took > 0 {
		for class, n := range ended {
			rate[class] = float64(n-m.past[0].ended[class]) / took
		}
	}
	m.past = append(m.past, counts{now, ended})
	return ended, rate
}

// draw draws a sample.
func (m *meter) draw(to io.Writer, s sample) {
	ended, rate := m.rates(time.Now())
	fmt.Fprintf(to, "%s  workers %d  slots %d  running %d  contents %.1f MiB\n\n", s.At.Local().Format(time.TimeOnly), s.Workers, s.Slots, s.Running, float64(s.Bytes)/(1<<20))
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLASS\tTASKS\tRUNNING\tOLDEST\tDEAD\tWORKERS\tSLOTS\tENDED\tA SECOND\tPROGRESS")
	classes := slices.Collect(maps.Keys(s.Classes))
	for class := range ended {
		if _, ok := s.Classes[class]; !ok {
			classes = append(classes, class)
		}
	}
	slices.Sort(classes)
	for _, class := range classes {
		c := s.Classes[class]
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%.1f\t%s\n", class, c.Tasks, c.Running, short(c.Oldest), c.Dead, c.Workers, c.Slots, ended[class], rate[class],
			progress(ended[class], c.Tasks, rate[class]))
	}
	w.Flush()
	if len(s.Tasks) == 0 {
		return
	}
	fmt.Fprintln(w, "\nTASK\tATTEMPT\tWORKER\tRUNS FOR")
	for _, t := range s.Tasks {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", t.ID, t.Attempt, t.Worker, short(max(s.At.Sub(t.Since), 0)))
	}
	w.Flush()
}

// progress shows how many of the tasks that there have been have ended, and when the rest will
// have.
func progress(ended, left int, rate float64) string {
	if ended+left == 0 {
		return ""
	}
	const width = 20
	full := width * ended / (ended + left)
	bar := fmt.Sprintf("[%s%s] %3d%%", strings.Repeat("#", full), strings.Repeat(".", width-full), 100*ended/(ended+left))
	if left > 0 && rate > 0 {
		bar += "  " + short(time.Duration(float64(left)/rate*float64(time.Second))) + " left"
	}
	return bar
}

// short is a duration without what nobody reads.
func short(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Minute:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	case d >= time.Second:
		return d.Truncate(time.Second).String()
	}
	return d.Truncate(time.Millisecond).String()
}
