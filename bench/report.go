//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// report holds all results.
type report struct {
	began       time.Time
	command     string
	latencies   []table
	throughputs []table // of the first workload, by the number of concurrent runs
	functions   []table
	first       time.Duration // a run that boots the cell
	firstRunc   time.Duration // runc in turn with it
	cgo, module imported      // what importing them adds to a program
	live        int64         // bytes
	waiting     int64
	growths     []curve
}

func (r *report) write(dir string) error {
	charts := filepath.Join(dir, "bench")
	if err := os.MkdirAll(charts, 0o755); err != nil {
		return err
	}
	if err := firstError(r.chartLatencies(filepath.Join(charts, "latency.svg")), r.chartThroughput(filepath.Join(charts, "throughput.svg")), r.chartGrowth(filepath.Join(charts, "growth.svg"))); err != nil {
		return err
	}
	file := filepath.Join(dir, "BENCHMARKS.md")
	progress("writing %s", file)
	return os.WriteFile(file, []byte(r.markdown()), 0o644)
}

func (r *report) markdown() string {
	var b strings.Builder
	var u unix.Utsname
	_ = unix.Uname(&u)
	version, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	fmt.Fprintf(&b, `# Benchmarks

Measured %s on a machine with %d CPUs, Linux %s, as root, with

    %s

in %d minutes. All subjects see the host's /usr and a directory with the programs, read-only. sandbox, libcontainer, crun and runc have limits of
memory, CPU and processes; bubblewrap and nsjail have none. "clone3 in C" is the kernel's part: seven new namespaces and an exec, with nothing mounted, limited or
refused, from a small process of C; "clone3 alone" does that by the library's executor from a process as large as this one. "prepared" has 16 runs that wait for their command (WithPrepared), and before each of its runs the time to replace
the one before; that time is in its CPU time. At several at a time they are not replaced fast enough, and most runs are fresh. Subjects take turns. What carries over to other machines is the ratios; times are this machine's.

`, r.began.UTC().Format("2006-01-02"), runtime.NumCPU(), version, r.command, int(time.Since(r.began).Minutes()+0.5))
	for _, t := range r.latencies {
		fmt.Fprintf(&b, "## %s\n\n| | median | of os/exec's | sandbox takes | prepared takes | p99 | CPU time of the machine, per run |\n"+
			"| --- | --- | --- | --- | --- | --- | --- |\n", t.title)
		least, fresh, prepared := t.of("os/exec").median, t.of(own).median, t.of(ahead).median
		for _, f := range t.rows {
			fmt.Fprintf(&b, "| %s | %s | %.2f × | %.2f × | %.2f × | %s | %s |\n", f.name, ms(f.median), float64(f.median)/float64(least),
				float64(fresh)/float64(f.median), float64(prepared)/float64(f.median), ms(f.p99), ms(f.cpu))
		}
		b.WriteString("\n")
	}
	b.WriteString("![latency](bench/latency.svg)\n\n## Runs per second, the static program\n\n| at a time |")
	for _, f := range r.throughputs[0].rows {
		fmt.Fprintf(&b, " %s |", f.name)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(r.throughputs[0].rows)) + "\n")
	for _, t := range r.throughputs {
		fmt.Fprintf(&b, "| %s |", t.title)
		for _, f := range t.rows {
			fmt.Fprintf(&b, " %.0f (%.2f ×) |", f.rate, t.of(own).rate/f.rate)
		}
		b.WriteString("\n")
	}
	b.WriteString("\nIn brackets: how many times as many sandbox does.\n\n![throughput](bench/throughput.svg)\n\n## Functions\n\n" +
		"1 KiB is turned to upper case, of 1 MiB there is a checksum. A worker of sandbox (`Workers`) has namespaces, limits and a filter, net/rpc (which\n" +
		"hashicorp/go-plugin uses) an ordinary process, and wazero runs the function compiled to WebAssembly in this process. \"Started ahead\" is\n" +
		"`function.MaxCalls(1)`, given the time to start the next. CPU time is also that of what goes on in the background.\n\n")
	for _, t := range r.functions {
		fmt.Fprintf(&b, "| %s | median | p99 | CPU time | sandbox takes |\n| --- | --- | --- | --- | --- |\n", t.title)
		for _, f := range t.rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %.2f × |\n", f.name, µs(f.median), µs(f.p99), µs(f.cpu), float64(t.of(own).median)/float64(f.median))
		}
		b.WriteString("\n")
	}
	besideRunc := ""
	if r.firstRunc > 0 {
		besideRunc = fmt.Sprintf(", %.2f × a run of runc, %s, in turn with it", float64(r.first)/float64(r.firstRunc), ms(r.firstRunc))
	}
	fmt.Fprintf(&b, "## Other figures\n\n"+
		"- The first run of a process, which boots the cell: %s%s.\n- A live run, its own small program included, takes up to %d KiB of the machine's memory, and one that waits for its command %d KiB.\n"+
		"- A program that imports the module and does not use it is %.1f MB larger (%.1f MB with -ldflags=\"-s -w\") and starts %s later; cgo alone, which libcontainer's wall needs, adds %.1f MB and %s.\n\n"+
		"## Growth\n\nThe median of a run of the static program, as something grows:\n\n", ms(r.first), besideRunc, r.live>>10, r.waiting>>10,
		float64(r.module.size)/1e6, float64(r.module.stripped)/1e6, ms(r.module.start), float64(r.cgo.size)/1e6, ms(r.cgo.start))
	for _, c := range r.growths {
		fmt.Fprintf(&b, "| %s |", c.name)
		for _, n := range c.sizes {
			fmt.Fprintf(&b, " %d |", n)
		}
		b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(c.sizes)) + "\n| median |")
		for _, m := range c.median {
			fmt.Fprintf(&b, " %s (%.2f ×) |", ms(m), float64(m)/float64(c.median[0]))
		}
		b.WriteString("\n\n")
	}
	b.WriteString("![growth](bench/growth.svg)\n")
	return b.String()
}

func (t table) of(name string) figures {
	for _, f := range t.rows {
		if f.name == name {
			return f
		}
	}
	return figures{}
}

func µs(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/1e3) }

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

func (r *report) chartLatencies(file string) error {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = "median of a run", "ms"
	p.Y.Min = 0
	var ticks []string
	width := vg.Points(9)
	for i, t := range r.latencies {
		values := make(plotter.Values, len(r.latencies[0].rows))
		for j, f := range r.latencies[0].rows {
			values[j] = float64(t.of(f.name).median) / 1e6
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = plotutil.Color(i), 0
		bars.Offset = (vg.Length(i) - vg.Length(len(r.latencies)-1)/2) * width
		p.Add(bars)
		p.Legend.Add(t.title, bars)
	}
	for _, f := range r.latencies[0].rows {
		ticks = append(ticks, f.name)
	}
	p.NominalX(ticks...)
	p.Legend.Top, p.Legend.Left = true, true
	return p.Save(24*vg.Centimeter, 11*vg.Centimeter, file)
}

func (r *report) chartThroughput(file string) error {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text, p.X.Label.Text = "runs per second, a static program", "runs/s", "at a time"
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	var lines []any
	for _, f := range r.throughputs[0].rows {
		var points plotter.XYs
		for i, t := range r.throughputs {
			points = append(points, plotter.XY{X: float64(i), Y: t.of(f.name).rate})
		}
		lines = append(lines, f.name, points)
	}
	if err := plotutil.AddLinePoints(p, lines...); err != nil {
		return err
	}
	var ticks []string
	for _, t := range r.throughputs {
		ticks = append(ticks, t.title)
	}
	p.NominalX(ticks...)
	p.Legend.Top = true
	return p.Save(24*vg.Centimeter, 11*vg.Centimeter, file)
}

func (r *report) chartGrowth(file string) error {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text, p.X.Label.Text = "a run as something grows, against its least", "×", "step"
	p.Y.Min = 0
	var lines []any
	for _, c := range r.growths {
		var points plotter.XYs
		for i, m := range c.median {
			points = append(points, plotter.XY{X: float64(i), Y: float64(m) / float64(c.median[0])})
		}
		lines = append(lines, c.name+" "+strings.Trim(strings.Join(strings.Fields(fmt.Sprint(c.sizes)), ", "), "[]"), points)
	}
	if err := plotutil.AddLinePoints(p, lines...); err != nil {
		return err
	}
	p.Legend.Top, p.Legend.Left = true, true
	return p.Save(24*vg.Centimeter, 11*vg.Centimeter, file)
}
