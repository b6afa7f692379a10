package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/cellkit/sandbox/queue"
)

// deploy has a service run.
func deploy(e *env, args []string) error {
	var s queue.Service
	e.flags.IntVar(&s.Replicas, "replicas", 1, "how many")
	e.flags.IntVar(&s.Port, "port", 0, "where they listen, by TCP")
	e.flags.StringVar(&s.Health, "health", "", "the path of a GET that a healthy one answers")
	e.flags.IntVar(&s.Batch, "batch", 1, "how many are replaced at a time")
	e.flags.StringVar(&s.Task.Class, "class", "", "what the worker must offer")
	e.flags.StringVar(&s.Task.Tenant, "tenant", "", "on whose behalf")
	e.flags.StringVar(&s.Task.Dir, "dir", "", "the working directory")
	e.sizeFlag(&s.Task.Limits.Memory, "memory", "limit of memory, a `SIZE` such as 64m")
	e.envFlag(&s.Task.Env)
	in := e.flags.String("in", "", "a `directory`, whose files are the inputs")
	rest, err := e.parse(args, 2, anyNumber, "NAME [--] COMMAND...")
	if err != nil {
		return err
	}
	if err := inputs(&s.Task, *in); err != nil {
		return err
	}
	q, err := e.open()
	if err != nil {
		return err
	}
	s.Name, s.Task.Command = rest[0], rest[1:]
	return e.done(q.Serve(e.ctx, s), map[string]any{"name": s.Name, "replicas": s.Replicas})
}

func scale(e *env, args []string) error {
	q, rest, err := e.openFor(args, 2, 2, "NAME REPLICAS")
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(rest[1])
	if err != nil {
		return misuse("REPLICAS: %q: must be a whole number", rest[1])
	}
	return e.done(q.Scale(e.ctx, rest[0], n), map[string]any{"name": rest[0], "replicas": n})
}

func stop(e *env, args []string) error {
	q, rest, err := e.openFor(args, 1, anyNumber, "NAME...")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range rest {
		errs = append(errs, e.done(q.StopService(e.ctx, name), map[string]any{"name": name, "stopped": true}))
	}
	return errors.Join(errs...)
}

// done prints what was done, if that is asked for and there was no error.
func (e *env) done(err error, what map[string]any) error {
	if err != nil || !e.json {
		return err
	}
	return e.print(what)
}

// services prints a line for each replica.
func services(e *env, args []string) error {
	q, _, err := e.openFor(args, 0, 0, "")
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	if !e.json {
		fmt.Fprintln(w, "SERVICE\tREPLICA\tSTATE\tHEALTHY\tADDRESS\tSTARTS\tWORKER\tSINCE\tWHY")
	}
	for s, err := range q.Services(e.ctx) {
		if err != nil {
			return err
		}
		if e.json {
			if err := json.NewEncoder(e.out).Encode(s); err != nil {
				return err
			}
			continue
		}
		for i, r := range append(s.Replicas, s.Old...) {
			state := r.State.String()
			if i >= len(s.Replicas) {
				state += ", old"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\t%d\t%s\t%s\t%q\n", s.Name, r.ID, state, r.Healthy, plain(r.Address), r.Attempt, plain(r.Worker), since(r.At), r.Text)
		}
	}
	return w.Flush()
}
