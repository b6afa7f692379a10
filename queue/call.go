package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
)

// callRecord is the function that a task calls. Its argument is the file callFile of the inputs.
type callRecord struct {
	Func  string `cbor:"1,keyasint"`
	Build string `cbor:"2,keyasint"`
}

// answerRecord is how a call ended without a result, which is the file callFile of the outputs.
type answerRecord struct {
	Func  string `cbor:"1,keyasint"`
	Kind  string `cbor:"2,keyasint"`
	Text  string `cbor:"3,keyasint,omitempty"`
	Stack string `cbor:"4,keyasint,omitempty"`
}

const (
	callFile    = "value"
	maxFuncName = 256
	maxEnvelope = 1 << 10 // that a result has besides its value
	maxStack    = 64 << 10

	failedCall   = "error" // kinds
	panickedCall = "panic"
	silentCall   = "no answer"
	largeCall    = "too large"
)

// remote is a function that workers of this program call.
type remote struct {
	limits func() function.Limits
	call   func(ctx context.Context, in []byte, opts ...function.Option) ([]byte, error)
}

var remotes = struct {
	sync.Mutex
	byName map[string]remote
}{byName: map[string]remote{}}

// Register has the workers that this program runs from now on run calls of a function:
//
//	var thumbnail = function.New("thumbnail", ...)
//
//	func init() { queue.Register(thumbnail) }
//
// The options of the function say what the processes may use, not those of the worker's pool; only
// what the pool's runs share (pool.Memory, pool.CPUs) limits both. Those who call it need not
// register it. If it is registered again, as after With, the later one counts.
func Register[In, Out any](f *function.Func[In, Out]) {
	remotes.Lock()
	defer remotes.Unlock()
	remotes.byName[f.Name()] = remote{f.Limits, f.CallEncoded}
}

func remoteFunc(name string) (remote, bool) {
	remotes.Lock()
	defer remotes.Unlock()
	r, ok := remotes.byName[name]
	return r, ok
}

// remoteNames returns the names of the functions for calls, not all if there are many.
func remoteNames() []string {
	remotes.Lock()
	defer remotes.Unlock()
	names := slices.Sorted(maps.Keys(remotes.byName))
	return names[:min(len(names), maxFunctions)]
}

// servedBuild returns the build of this program if it has functions for calls, or "".
func servedBuild() (string, error) {
	remotes.Lock()
	n := len(remotes.byName)
	remotes.Unlock()
	if n == 0 {
		return "", nil
	}
	return BuildID()
}

// Call calls a function in a worker of the same build as this program, wherever one is, and waits
// for its result: it is SubmitCall and WaitCall. If ctx ends first the call is canceled, unless it
// has a Key, as others may wait for it.
func Call[In, Out any](ctx context.Context, q *Queue, f *function.Func[In, Out], in In, with ...Task) (Out, error) {
	id, err := SubmitCall(ctx, q, f, in, with...)
	if err != nil {
		return *new(Out), err
	}
	out, err := WaitCall(ctx, q, f, id)
	if err != nil && ctx.Err() != nil && (len(with) == 0 || with[0].Key == "") {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryTime)
		defer cancel()
		_, cancelErr := q.Cancel(late, id, "its caller has gone: "+context.Cause(ctx).Error())
		err = errors.Join(err, cancelErr)
	}
	return out, err
}

// SubmitCall submits a call of a function and returns the id of its task, for which everything
// holds that does for tasks. with, of which there may be one, says more about it: Class, Priority,
// Tenant, Key, Retry, Delay, Deadline, and Limits except for Files; it must have nothing else. A
// Key is one of this function: a call of another one with the same Key is another task. A function
// that fails is not called again, unless Retry.Failures is set.
//
// The task waits for a worker of the same build (BuildID), in a program that has registered the
// function: a worker of another one does not take it. Its Status says so, and so does sandbox-queue
// ls. The argument may be as large as function.MessageLimit says, and is decoded in the function's
// process alone. Files and streams can't be sent: errors.ErrUnsupported.
func SubmitCall[In, Out any](ctx context.Context, q *Queue, f *function.Func[In, Out], in In, with ...Task) (id string, err error) {
	if len(with) > 1 {
		return "", wrong("SubmitCall", "%d tasks: one at most says more about a call", len(with))
	}
	var t Task
	if len(with) == 1 {
		t = with[0]
	}
	if len(t.Command) > 0 || t.Dir != "" || len(t.Env) > 0 || len(t.Stdin) > 0 || t.Inputs != nil || len(t.Outputs) > 0 || t.Limits.Files != 0 {
		return "", wrong("SubmitCall", "the task has a Command, Dir, Env, Stdin, files or Limits.Files: a function has none of them")
	}
	value, err := f.Encode(in)
	if err != nil {
		return "", err
	}
	build, err := BuildID()
	if err != nil {
		return "", fmt.Errorf("queue: %w", err)
	}
	r, err := t.record(&callRecord{Func: f.Name(), Build: build})
	if err != nil {
		return "", err
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, packTime, errSlow)
	defer cancel()
	if r.Inputs, err = q.packValue(ctx, value); err != nil {
		return "", fmt.Errorf("queue: argument: %w", full(err))
	}
	named := t
	if t.Key != "" {
		named.Key = f.Name() + "\x00" + t.Key // which no name has: see check
	}
	return q.submit(ctx, named.id(build), r, &t, begun)
}

// WaitCall waits for the end of a call that SubmitCall submitted, maybe in another process of the
// same build, and returns its result. The errors are those of function.Func.Call and of Wait: if
// the function failed in each of several attempts, errors.As finds both its error and an *EndError.
// If the task called another function, the error is an *sandbox.OptionError.
func WaitCall[In, Out any](ctx context.Context, q *Queue, f *function.Func[In, Out], id string) (Out, error) {
	var zero Out
	res, err := q.Wait(ctx, id)
	if res != nil && res.function != "" && res.function != f.Name() {
		return zero, wrong("WaitCall", "%s called function %.300q, and this is %q: wait for it with the one that it was submitted with", id, res.function, f.Name())
	}
	if err != nil {
		return zero, err
	}
	value, err := readValue(res.Outputs, f.Limits().Message+maxEnvelope)
	if err != nil {
		return zero, fmt.Errorf("queue: %s: its result: %w", id, err)
	}
	return f.Decode(ctx, value)
}

// check reports what is wrong with the function of a task, whoever wrote it.
func (c *callRecord) check(r *taskRecord) error {
	switch {
	case c.Func == "" || len(c.Func) > maxFuncName || !utf8.ValidString(c.Func) || strings.ContainsRune(c.Func, 0):
		return wrong("SubmitCall", "%.300q is no name of a function: it has 1 to %d bytes of UTF-8", c.Func, maxFuncName)
	case !buildPattern.MatchString(c.Build):
		return wrong("SubmitCall", "%.300q is no build: BuildID returns one", c.Build)
	case len(r.Command) > 0 || r.Dir != "" || len(r.Env) > 0 || len(r.Stdin) > 0 || len(r.Outputs) > 0:
		return wrong("SubmitCall", "a task that calls a function has no command, directory, environment, input or outputs")
	case r.Inputs == nil:
		return wrong("SubmitCall", "the argument is missing")
	}
	return nil
}

// packValue stores an argument or a result.
func (q *Queue) packValue(ctx context.Context, value []byte) (*bundle, error) {
	e := entry{Name: callFile, Mode: 0o600, Size: int64(len(value))}
	if len(value) <= inlineBundle {
		e.Data = value
	} else {
		var err error
		if e.Sum, e.Size, err = q.putBytes(ctx, q.nowOnce(ctx), value); err != nil {
			return nil, err
		}
	}
	return &bundle{Inline: &bundleRecord{Version: version, Entries: []entry{e}}}, nil
}

// readValue reads what packValue stored, of at most so many bytes, whoever wrote it.
func readValue(files fs.FS, most int64) ([]byte, error) {
	info, err := fs.Stat(files, callFile)
	if err != nil {
		return nil, err
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%w: %d bytes", function.ErrMessageLimit, info.Size())
	}
	return fs.ReadFile(files, callFile)
}

// err returns the error of a call that ended without a result.
func (a *answerRecord) err(id string) error {
	switch a.Kind {
	case failedCall:
		return &function.Error{Func: a.Func, Text: a.Text}
	case panickedCall:
		return &function.PanicError{Func: a.Func, Value: a.Text, Stack: a.Stack}
	case silentCall:
		return fmt.Errorf("queue: %s: function %s: %w", id, a.Func, function.ErrNoAnswer)
	case largeCall:
		return fmt.Errorf("queue: %s: function %s: %w (%s)", id, a.Func, function.ErrMessageLimit, a.Text)
	}
	return fmt.Errorf("queue: %s: function %s: it ended in a way that this version does not know: %q", id, a.Func, a.Kind)
}

// answerOf returns how a call ended that has no result, or nil if an error says that it did not end
// by itself.
func answerOf(name string, err error) *answerRecord {
	a := &answerRecord{Func: name}
	var failed *function.Error
	var panicked *function.PanicError
	switch {
	case errors.As(err, &failed):
		a.Kind, a.Text = failedCall, failed.Text
	case errors.As(err, &panicked):
		a.Kind, a.Text, a.Stack = panickedCall, panicked.Value, panicked.Stack
	case errors.Is(err, function.ErrNoAnswer):
		a.Kind = silentCall
	case errors.Is(err, function.ErrMessageLimit):
		a.Kind, a.Text = largeCall, err.Error()
	default:
		return nil
	}
	a.Text = strings.ToValidUTF8(a.Text[:min(len(a.Text), maxStack)], "\ufffd")
	a.Stack = strings.ToValidUTF8(a.Stack[:min(len(a.Stack), maxStack)], "\ufffd")
	return a
}

// call calls the task's function. If that has no result, the error says why, and again that another
// attempt may make sense.
func (a *attempt) call(run context.Context, limits Limits) (r *runRecord, failure error, again bool) {
	f, ok := remoteFunc(a.task.Call.Func)
	if !ok {
		return nil, fmt.Errorf("this program has no function %q any more", a.task.Call.Func), true
	}
	files, err := a.w.q.unpack(run, a.task.Inputs)
	if err != nil {
		return nil, fmt.Errorf("argument: %w", err), true
	}
	value, err := readValue(files, f.limits().Message)
	if err != nil {
		return nil, fmt.Errorf("argument: %w", err), true
	}
	out := a.w.q.newOutput(a.id)
	out.attempt, out.claim = a.now.Attempt, a.seq
	opts := append(limits.options(), a.w.pool.Share(), sandbox.WithStdout(out.writer(0)), sandbox.WithStderr(out.writer(1)))
	begun := time.Now()
	result, err := f.call(run, value, function.Options(opts...))
	took := time.Since(begun)
	out.end(run)
	if run.Err() != nil {
		return nil, context.Cause(run), true
	}
	var exit *sandbox.ExitError
	r = &runRecord{Reason: sandbox.Exited.String(), Usage: usageRecord{Wall: took}}
	if errors.As(err, &exit) {
		r = runOf(exit.Result)
	} else if err != nil {
		if r.Call = answerOf(a.task.Call.Func, err); r.Call == nil {
			var option *sandbox.OptionError
			return nil, err, !errors.As(err, &option)
		}
	}
	r.Func = a.task.Call.Func
	out.result(r)
	if err != nil {
		return r, err, a.task.Retry.Failures
	}
	if r.Outputs, err = a.w.q.packValue(run, result); err != nil {
		return r, fmt.Errorf("result: %w", full(err)), true
	}
	return r, nil, false
}
