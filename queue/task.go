package queue

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

// Task is a command that is to run somewhere. It says what a submitter may say; what else a run may
// use of a machine (binds, roots, networks, capabilities) only the sandbox of a worker does.
type Task struct {
	// Command is the program and its arguments, as for sandbox.WithCommand. Required.
	Command []string
	// Dir is the working directory inside, absolute, or relative to /task if there are Inputs or
	// Outputs. Default: /task, if there are any, else the sandbox's.
	Dir string
	// Env is added to the sandbox's environment, as "KEY=value".
	Env []string
	// Stdin is the standard input, up to 128 KiB. Default: it is empty.
	Stdin []byte
	// Limits are what the run may use. A worker has limits of its own: see MaxLimits.
	Limits Limits

	// Inputs are files, which are in /task when the command starts: regular files, directories
	// and symbolic links that don't lead out. Up to 10,000, of up to 1 GiB together. A file is
	// stored once for all tasks that have one with the same content. Default: none.
	Inputs fs.FS
	// Outputs names files and directories in /task that the result is to have, whatever the
	// command's end: names as in package fs, up to 100. Default: none.
	Outputs []string

	// Class is what a worker must offer: 1 to 32 of a-z, 0-9 and -. Default: "default".
	Class string
	// Priority orders the tasks of the classes of a worker: it takes those of a higher one
	// first.
	Priority Priority
	// Tenant is on whose behalf the task runs, such as a customer. Workers take the tasks of a
	// class and priority from each tenant in turn, so that many of one hold back no other's;
	// those without a tenant are together as one. It is no secret and no permission: 64 lanes
	// of tenants, found by a hash, are told apart. Up to 512 bytes. Default: none.
	Tenant string
	// Key names the task. Tasks with the same key, class, priority and tenant are one, as long
	// as its result is kept (Retention): the first of them. Up to 512 bytes. Default: every
	// task is another one.
	Key string
	// Retry says how often it is tried. Default: see Retry.
	Retry Retry
	// Delay is how long it waits at least before it starts. Up to 30 days.
	Delay time.Duration
	// Deadline is when it is given up if it has not started: ErrExpired. How far it is off is
	// seen when the task is submitted. Default: never.
	Deadline time.Time
}

// Limits are what a run may use, as the options of package sandbox with their names say. 0: what
// the worker gives.
type Limits struct {
	Memory  int64         `cbor:"1,keyasint,omitempty"` // bytes
	CPUs    float64       `cbor:"2,keyasint,omitempty"`
	PIDs    int64         `cbor:"3,keyasint,omitempty"`
	CPUTime time.Duration `cbor:"4,keyasint,omitempty"`
	Timeout time.Duration `cbor:"5,keyasint,omitempty"`
	Output  int64         `cbor:"6,keyasint,omitempty"` // bytes of standard output and error
	// Bytes in /task, which are memory; a worker's default: 256 MiB.
	Files int64 `cbor:"7,keyasint,omitempty"`
}

// Retry says what is tried again. A worker that was lost, or that could not start the command, is
// always a reason; a command that failed only if Failures is set.
type Retry struct {
	Attempts int `cbor:"1,keyasint,omitempty"` // 1 to 100. Default: 3
	// Also when the command fails or reaches a limit.
	Failures bool `cbor:"2,keyasint,omitempty"`
	// Before the second attempt, doubled for each further one, up to an hour. Default: 1 s.
	Backoff time.Duration `cbor:"3,keyasint,omitempty"`
}

// Priority orders tasks.
type Priority int

const (
	Low    Priority = -1
	Normal Priority = 0
	High   Priority = 1
)

// priorities is in the order in which workers look for tasks.
var priorities = [...]Priority{High, Normal, Low}

func (p Priority) String() string {
	switch p {
	case Low:
		return "low"
	case Normal:
		return "normal"
	case High:
		return "high"
	}
	return fmt.Sprintf("Priority(%d)", int(p))
}

// What a task may have.
const (
	maxWords    = 128 << 10 // command, environment, directory and outputs together
	maxStdin    = 128 << 10
	maxKey      = 512
	maxOutputs  = 100
	maxAttempts = 100
	maxBackoff  = time.Hour
	maxDelay    = 30 * 24 * time.Hour
)

// taskRecord is a task as it is stored, at its id's subject. It is written by submitters, whom
// workers don't trust.
type taskRecord struct {
	Version   int      `cbor:"0,keyasint"`
	Command   []string `cbor:"1,keyasint"`
	Dir       string   `cbor:"2,keyasint,omitempty"`
	Env       []string `cbor:"3,keyasint,omitempty"`
	Stdin     []byte   `cbor:"4,keyasint,omitempty"`
	Limits    Limits   `cbor:"5,keyasint"`
	Inputs    *bundle  `cbor:"6,keyasint,omitempty"`
	Outputs   []string `cbor:"7,keyasint,omitempty"`
	Retry     Retry    `cbor:"8,keyasint"`
	Submitted int64    `cbor:"9,keyasint"`            // ns since 1970
	NotBefore int64    `cbor:"10,keyasint,omitempty"` // ns since 1970, by the servers' clock
	Deadline  int64    `cbor:"11,keyasint,omitempty"` // as NotBefore

	// Of a function, in place of a command.
	Call    *callRecord    `cbor:"12,keyasint,omitempty"`
	Replica *replicaRecord `cbor:"13,keyasint,omitempty"` // of a service: it has no end
}

// id returns the task's id: its class, its priority and lane, and a part that no other of these
// has. kind is that of laneOf.
func (t *Task) id(kind string) string {
	name := strings.ToLower(rand.Text())
	if t.Key != "" {
		sum := sha256.Sum256([]byte(t.Key))
		if t.Tenant != "" { // others may be in its lane
			tenant := sha256.Sum256([]byte(t.Tenant))
			sum = sha256.Sum256(append(tenant[:], sum[:]...))
		}
		name = hex.EncodeToString(sum[:16])
	}
	return t.class() + "." + route(t.Priority, laneOf(kind, t.Tenant)) + "." + name
}

func (t *Task) class() string {
	if t.Class == "" {
		return "default"
	}
	return t.Class
}

// validID reports whether an id can be one, so that it can be part of a subject.
func validID(id string) bool {
	part := strings.Split(id, ".")
	return len(part) == 3 && tokenPattern.MatchString(part[0]) && routePattern.MatchString(part[1]) && tokenPattern.MatchString(part[2])
}

func checkID(function, id string) error {
	if !validID(id) {
		return wrong(function, "%q is no id of a task: Submit returns one, such as default.normal.3f2a", id)
	}
	return nil
}

// record returns the task as it is stored, without its inputs and times. call is the function of a
// call.
func (t *Task) record(call *callRecord) (*taskRecord, error) {
	r := &taskRecord{Version: version, Call: call, Command: t.Command, Dir: t.Dir, Env: t.Env, Stdin: t.Stdin, Limits: t.Limits, Outputs: t.Outputs, Retry: t.Retry}
	switch {
	case !tokenPattern.MatchString(t.class()):
		return nil, wrong("Task.Class", "%q: a class is 1 to 32 of a-z, 0-9 and -", t.Class)
	case t.Priority < Low || t.Priority > High:
		return nil, wrong("Task.Priority", "%d: must be Low, Normal or High", t.Priority)
	case len(t.Key) > maxKey:
		return nil, wrong("Task.Key", "%d bytes, more than %d: hash it", len(t.Key), maxKey)
	case len(t.Tenant) > maxKey:
		return nil, wrong("Task.Tenant", "%d bytes, more than %d: hash it", len(t.Tenant), maxKey)
	case t.Delay < 0 || t.Delay > maxDelay:
		return nil, wrong("Task.Delay", "%v: must be 0 to %v", t.Delay, maxDelay)
	case t.Dir != "" && !path.IsAbs(t.Dir) && t.Inputs == nil && len(t.Outputs) == 0:
		return nil, wrong("Task.Dir", "%q is relative to the files of Inputs and Outputs, of which there are none: take an absolute one", t.Dir)
	}
	if call != nil {
		return r, nil // checked when it has its argument
	}
	return r, r.check()
}

// check reports what is wrong with a task, whoever wrote it.
func (r *taskRecord) check() error {
	words, valid := len(r.Dir), utf8.ValidString(r.Dir)
	for _, s := range [][]string{r.Command, r.Env, r.Outputs} {
		for _, w := range s {
			words += len(w) + 1
			valid = valid && utf8.ValidString(w)
		}
	}
	if r.Call != nil {
		if err := r.Call.check(r); err != nil {
			return err
		}
	}
	l, again := r.Limits, r.Retry
	switch {
	case r.Call != nil && r.Replica != nil:
		return wrong("SubmitCall", "a function can't be a service")
	case r.Replica != nil && !r.Replica.valid():
		return wrong("Service", "%+v can't be a replica", *r.Replica)
	case r.Call == nil && len(r.Command) == 0, len(r.Command) > 0 && r.Command[0] == "":
		return wrong("Task.Command", "there is none")
	case words > maxWords:
		return wrong("Task.Command", "with Env, Dir and Outputs it is %d bytes, more than %d: put some in a file of Inputs", words, maxWords)
	case max(len(r.Command), len(r.Env)) > maxElements:
		return wrong("Task.Command", "it or Env has more than %d words: put some in a file of Inputs", maxElements)
	case !valid:
		return wrong("Task.Command", "it, Env, Dir or Outputs is not UTF-8: put such words in a file of Inputs")
	case len(r.Stdin) > maxStdin:
		return wrong("Task.Stdin", "%d bytes, more than %d: use a file of Inputs", len(r.Stdin), maxStdin)
	case len(r.Outputs) > maxOutputs:
		return wrong("Task.Outputs", "%d names, more than %d: name a directory", len(r.Outputs), maxOutputs)
	case l.Memory < 0 || !(l.CPUs >= 0) || l.PIDs < 0 || l.CPUTime < 0 || l.Timeout < 0 || l.Output < 0 || l.Files < 0:
		return wrong("Task.Limits", "%+v: must not be negative", l)
	case again.Attempts < 0 || again.Attempts > maxAttempts:
		return wrong("Task.Retry", "%d attempts: must be 1 to %d", again.Attempts, maxAttempts)
	case again.Backoff < 0 || again.Backoff > maxBackoff:
		return wrong("Task.Retry", "a back-off of %v: must be 0 to %v", again.Backoff, maxBackoff)
	}
	for _, kv := range r.Env {
		if strings.Index(kv, "=") <= 0 {
			return wrong("Task.Env", "%q does not have the form KEY=value", kv)
		}
	}
	for _, name := range r.Outputs {
		if !fs.ValidPath(name) {
			return wrong("Task.Outputs", "%q: must be a name in /task as in package fs, such as results/a.txt", name)
		}
	}
	if d := path.Clean(r.Dir); !path.IsAbs(d) && !fs.ValidPath(d) {
		return wrong("Task.Dir", "%q leads out of /task: an absolute one may", r.Dir)
	}
	return nil
}

// attempts returns how often the task is tried.
func (r *taskRecord) attempts() int {
	switch {
	case r.Replica != nil:
		return math.MaxInt
	case r.Retry.Attempts == 0:
		return 3
	}
	return r.Retry.Attempts
}

// backoff returns how long to wait after an attempt.
func (r Retry) backoff(attempt int) time.Duration {
	d := r.Backoff
	if d == 0 {
		d = time.Second
	}
	for range attempt - 1 {
		d = min(2*d, maxBackoff)
	}
	return d
}
