package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// A report holds the results of all configurations so far.
type report struct {
	out      io.Writer
	verbose  bool
	sections []*section
}

// A section is one configuration's part of the report.
type section struct {
	*report
	name  string
	total counts
	skips []string // "TestX (package): reason"
	took  time.Duration
	slow  []slowTest // the slowest first

	failed   []string // tests, not subtests
	broke    bool     // something other than tests failed
	unsteady bool     // failed tests that passed when they were tried again
	died     bool     // the guest died in the middle of the tests
}

// A slowTest is a test that took a large part of a configuration's time.
type slowTest struct {
	name string
	took float64 // in seconds, including other tests that ran in parallel
}

// mostSlow is how many slow tests of each configuration the report names.
const mostSlow = 6

// addSlow adds the times of tests.
func (s *section) addSlow(tests []slowTest) {
	s.slow = append(s.slow, tests...)
	slices.SortFunc(s.slow, func(a, b slowTest) int { return cmp.Compare(b.took, a.took) })
	s.slow = s.slow[:min(mostSlow, len(s.slow))]
}

type counts struct{ passed, failed, skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

func (c *counts) add(d counts) {
	c.passed += d.passed
	c.failed += d.failed
	c.skipped += d.skipped
}

func (r *report) section(name string) *section {
	s := &section{report: r, name: name}
	r.sections = append(r.sections, s)
	return s
}

func (r *report) broken(name string, err error) { r.section(name).broken(err) }

// broken counts as a failure what is not the fault of one test, such as a guest that died.
func (s *section) broken(err error) {
	fmt.Fprintf(s.out, "FAIL  %s: %v\n", s.name, err)
	s.total.failed++
	s.broke = true
}

// worthAnotherTry returns the tests that failed, if nothing else failed and they are few.
func (s *section) worthAnotherTry() []string {
	if s.broke || len(s.failed) > 3 {
		return nil
	}
	return s.failed
}

// triedAgain adds the results of the failed tests' second try.
func (s *section) triedAgain(again *section) {
	if again.total.failed > 0 || again.total.passed == 0 {
		return
	}
	s.total.failed, s.unsteady = 0, true
	s.total.passed += again.total.passed
}

// bootedAgain adds the results of all tests in another guest, after this one died.
func (s *section) bootedAgain(again *section) {
	if again.total.failed > 0 || again.total.passed == 0 {
		return
	}
	s.total, s.skips, s.failed, s.unsteady = again.total, again.skips, []string{"all tests, as the guest died"}, true
}

// leftOut counts a configuration that this machine can't have as a skip.
func (s *section) leftOut(why string) {
	fmt.Fprintf(s.out, "skip  %s: %s\n", s.name, why)
	s.total.skipped++
	s.skips = append(s.skips, "the configuration: "+why)
}

// print ends the report and reports whether everything passed.
func (r *report) print(w io.Writer) bool {
	var total counts
	fmt.Fprintln(w)
	for _, s := range r.sections {
		fmt.Fprintf(w, "%s: %v in %v\n", s.name, s.total, s.took.Round(time.Second))
		for i, t := range s.slow {
			fmt.Fprintf(w, "%s%s %.0fs", [2]string{"    slowest: ", ", "}[min(i, 1)], t.name, t.took)
		}
		if len(s.slow) > 0 {
			fmt.Fprintln(w)
		}
		for _, skip := range s.skips {
			fmt.Fprintf(w, "    skipped %s\n", skip)
		}
		if s.unsteady {
			fmt.Fprintf(w, "    unsteady, passed when tried again: %s\n", strings.Join(s.failed, ", "))
		}
		total.add(s.total)
	}
	fmt.Fprintln(w, total)
	return total.failed == 0 && total.passed > 0
}

// read parses the output of suite.sh until it ends. Its error is about the configuration, not about
// a test.
func (s *section) read(ctx context.Context, r io.Reader, packages []testPackage) error {
	var (
		current *packageRun
		ended   int
		lines   = bufio.NewReader(r)
	)
	for {
		line, err := lines.ReadString('\n')
		var (
			dir  string
			exit int
		)
		switch {
		case scan(line, "##vmtest begin %s\n", &dir):
			current = startPackage(ctx, dir)
		case current == nil:
			if strings.TrimSpace(line) != "" {
				fmt.Fprintf(s.out, "%s: %s", s.name, line)
			}
		case scan(line, "##vmtest end %d %s\n", &exit, &dir):
			s.packageEnded(current, exit)
			current = nil
			ended++
		default:
			current.write(line)
		}
		if err == nil {
			continue
		}
		if current != nil { // the guest died, or the whole is being stopped
			s.packageEnded(current, -1)
		}
		switch {
		case !errors.Is(err, io.EOF):
			return err
		case ended < len(packages):
			return fmt.Errorf("only %d of %d packages ran to their end", ended, len(packages))
		case s.total == counts{}:
			return errors.New("no tests ran")
		}
		return nil
	}
}

func scan(line, format string, args ...any) bool {
	n, err := fmt.Sscanf(line, format, args...)
	return err == nil && n == len(args)
}

func (s *section) packageEnded(p *packageRun, exit int) {
	if exit != 0 && exit != 1 {
		p.write("\n\x16FAIL\n") // a killed binary lacks this line, for which test2json waits with the last result
	}
	results := p.end()
	var out strings.Builder // in one piece, because other configurations run at the same time
	count, skips := results.finish(exit)
	s.addSlow(results.times())
	for _, t := range results.tests {
		if s.verbose || t.outcome == "fail" {
			fmt.Fprint(&out, tidy(t.output.String()))
		}
		if t.outcome == "fail" && len(results.parents(t.name)) == 0 {
			s.failed = append(s.failed, t.name)
		}
	}
	s.broke = s.broke || exit != 0 && (exit != 1 || len(s.failed) == 0) || results.err != nil
	if s.verbose || exit != 0 || results.err != nil {
		fmt.Fprint(&out, tidy(results.output.String()))
	}
	for _, skip := range skips {
		s.skips = append(s.skips, fmt.Sprintf("%s (%s): %s", skip.name, p.dir, skip.reason()))
	}
	word := "ok  "
	if count.failed > 0 {
		word = "FAIL"
	}
	fmt.Fprintf(&out, "%s  %-15s %-24s %v  %.1fs\n", word, s.name, p.dir, count, time.Since(p.start).Seconds())
	fmt.Fprint(s.out, out.String())
	s.total.add(count)
}

// tidy removes the lines that only say which test is running.
func tidy(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "=== ") && strings.TrimSpace(line) != "" {
			b.WriteString(line)
		}
	}
	return b.String()
}

// A packageRun passes the output of a test binary through go tool test2json.
type packageRun struct {
	dir     string
	start   time.Time
	stdin   *io.PipeWriter
	results chan *packageResults // gets one value, after stdin is closed
}

func startPackage(ctx context.Context, dir string) *packageRun {
	stdin, w := io.Pipe()
	events, stdout := io.Pipe()
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-t") // -t adds times
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	go func() {
		err := cmd.Run()
		stdin.CloseWithError(err)
		stdout.CloseWithError(err)
	}()
	p := &packageRun{dir: dir, start: time.Now(), stdin: w, results: make(chan *packageResults, 1)}
	go func() {
		results := newPackageResults()
		results.err = results.read(events)
		events.Close()
		p.results <- results
	}()
	return p
}

// write never fails: when test2json has ended early, its results carry the error.
func (p *packageRun) write(line string) { io.WriteString(p.stdin, line) }

func (p *packageRun) end() *packageResults {
	p.stdin.Close()
	return <-p.results
}

// packageResults holds the tests of a package and their output.
type packageResults struct {
	tests  []*testResult // in the order of their start
	byName map[string]*testResult
	output strings.Builder // outside of any test
	err    error           // of test2json
}

type testResult struct {
	name    string
	outcome string // "pass", "fail", "skip"; "" while it runs
	parent  bool
	took    float64 // in seconds
	output  strings.Builder
}

func newPackageResults() *packageResults {
	return &packageResults{byName: make(map[string]*testResult)}
}

// An event is a line of test2json's output; see go doc test2json.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

func (p *packageResults) read(r io.Reader) error {
	for d := json.NewDecoder(r); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		p.add(e)
	}
}

func (p *packageResults) add(e event) {
	if e.Test == "" {
		p.output.WriteString(e.Output)
		return
	}
	t := p.byName[e.Test]
	if t == nil {
		t = &testResult{name: e.Test}
		p.byName[e.Test] = t
		p.tests = append(p.tests, t)
	}
	switch e.Action {
	case "output":
		t.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		t.outcome, t.took = e.Action, e.Elapsed
	}
}

// times returns how long each test took, subtests included.
func (p *packageResults) times() (list []slowTest) {
	for _, t := range p.tests {
		if len(p.parents(t.name)) == 0 && t.took >= 1 {
			list = append(list, slowTest{t.name, t.took})
		}
	}
	return list
}

// finish counts the tests of a binary that ended with the given exit status, or -1 if it never
// ended. A test with subtests counts only if the subtests don't show its outcome, so that every
// check is counted once.
func (p *packageResults) finish(exit int) (c counts, skips []*testResult) {
	failedBelow := make(map[string]bool)
	for _, t := range p.tests {
		if t.outcome == "" { // a panic, a deadline, os.Exit: it did not finish
			t.outcome = "fail"
			fmt.Fprintf(&t.output, "--- FAIL: %s (it did not end)\n", t.name)
		}
		for _, parent := range p.parents(t.name) {
			parent.parent = true
			failedBelow[parent.name] = failedBelow[parent.name] || t.outcome == "fail"
		}
	}
	for _, t := range p.tests {
		switch {
		case t.outcome == "skip":
			c.skipped++
			skips = append(skips, t)
		case t.outcome == "fail" && !failedBelow[t.name]:
			c.failed++
		case t.outcome == "pass" && !t.parent:
			c.passed++
		}
	}
	switch {
	case p.err != nil:
		fmt.Fprintf(&p.output, "test2json: %v\n", p.err)
	case exit == -1:
		fmt.Fprintf(&p.output, "the output ends before the test binary does\n")
	case exit != 0:
		fmt.Fprintf(&p.output, "exit status %d\n", exit)
	}
	if (exit != 0 || p.err != nil) && c.failed == 0 {
		c.failed++
	}
	return c, skips
}

// parents returns the tests that name is a subtest of. A subtest's own name may contain slashes.
func (p *packageResults) parents(name string) []*testResult {
	var parents []*testResult
	for i := range len(name) {
		if t := p.byName[name[:i]]; name[i] == '/' && t != nil {
			parents = append(parents, t)
		}
	}
	return parents
}

// reason returns the output of a skipped test, on one line.
func (t *testResult) reason() string {
	var words []string
	for line := range strings.Lines(tidy(t.output.String())) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "--- SKIP") {
			words = append(words, line)
		}
	}
	return strings.Join(words, " ")
}
