package main

import (
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cellkit/sandbox/queue"
)

func logs(e *env, args []string) error {
	after := e.flags.Uint64("after", 0, "go on after this `position`, which -json prints")
	q, rest, err := e.openFor(args, 1, 1, "ID")
	if err != nil {
		return err
	}
	for c, err := range q.Logs(e.ctx, rest[0], *after) {
		if err != nil {
			return err
		}
		if e.json {
			err = e.print(map[string]any{"position": fmt.Sprint(c.Position), "attempt": c.Attempt, "stderr": c.Stderr, "offset": c.Offset, "data": string(c.Data)})
		} else if c.Stderr {
			_, err = e.err.Write(c.Data)
		} else {
			_, err = e.out.Write(c.Data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func cancel(e *env, args []string) error {
	q, rest, err := e.openFor(args, 1, anyNumber, "ID [REASON]")
	if err != nil {
		return err
	}
	won, err := q.Cancel(e.ctx, rest[0], strings.Join(rest[1:], " "))
	if err == nil && e.json {
		err = e.print(map[string]any{"id": rest[0], "canceled": won})
	}
	if err == nil && !won {
		err = fmt.Errorf("%s had ended before: there is nothing to cancel", rest[0])
	}
	return err
}

func requeue(e *env, args []string) error {
	q, rest, err := e.openFor(args, 1, anyNumber, "ID...")
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range rest {
		errs = append(errs, e.done(q.Requeue(e.ctx, id), map[string]any{"id": id, "state": queue.Waiting}))
	}
	return errors.Join(errs...)
}

func list(e *env, args []string) error {
	return tasks(e, args, func(q *queue.Queue) iter.Seq2[queue.Status, error] { return q.List(e.ctx) })
}

func dead(e *env, args []string) error {
	return tasks(e, args, func(q *queue.Queue) iter.Seq2[queue.Status, error] { return q.Dead(e.ctx) })
}

func tasks(e *env, args []string, of func(*queue.Queue) iter.Seq2[queue.Status, error]) error {
	q, _, err := e.openFor(args, 0, 0, "")
	if err != nil {
		return err
	}
	return table(e, of(q), "ID\tSTATE\tATTEMPT\tWORKER\tSINCE\tWHY", func(s queue.Status) string {
		return fmt.Sprintf("%s\t%v\t%d\t%s\t%s\t%q", s.ID, s.State, s.Attempt, plain(s.Worker), since(s.At), s.Text)
	})
}

func workers(e *env, args []string) error {
	q, _, err := e.openFor(args, 0, 0, "")
	if err != nil {
		return err
	}
	return table(e, q.Workers(e.ctx), "NAME\tHOST\tCLASSES\tRUNNING\tSLOTS\tBUILD\tSEEN", func(s queue.WorkerStatus) string {
		slots := strconv.Itoa(s.Slots)
		if s.Draining {
			slots = "draining"
		}
		return fmt.Sprintf("%s\t%q\t%q\t%d\t%s\t%.12s\t%s", s.Name, s.Host, s.Classes, s.Running, slots, plain(s.Build), s.At.Format(time.DateTime))
	})
}

// table prints a table, or JSON.
func table[T any](e *env, rows iter.Seq2[T, error], head string, line func(T) string) error {
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	if !e.json {
		fmt.Fprintln(w, head)
	}
	for row, err := range rows {
		if err != nil {
			return err
		}
		if e.json {
			if err := e.print(row); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(w, line(row))
	}
	return w.Flush()
}

// since formats when something changed last: "" for what nobody has said anything of yet.
func since(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.Format(time.DateTime)
}
