//go:build linux

package queue

import (
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
	"github.com/cellkit/sandbox/internal/testkit"
)

// Records as the first version wrote them, and as later ones may. They are bytes, so that no change
// of this package changes them.
const (
	oldTask = "\xa5\x00\x01\x01\x83\x67/bin/sh\x62-c\x68echo old\x05\xa0\x08\xa1\x01\x02\x09\x01"
	// With a field that this version does not know.
	laterTask = "\xa6\x00\x01\x01\x83\x67/bin/sh\x62-c\x6aecho later\x05\xa0\x08\xa0\x09\x01\x18\xc8\x63new"
	// Of a version that this one can't understand.
	newerTask  = "\xa2\x00\x18\x63\x01\x63new"
	newerState = "\xa2\x00\x18\x63\x01\x03"
	oldState   = "\xa4\x00\x01\x01\x03\x02\x01\x08\xa4\x01\x07\x03\x66exited\x04\xa1\x01\x01\x0a\x01"
)

// Records of all kinds, with all that they may have. A field that is added later is in none of
// them, and is not written where it says nothing; these stay.
const (
	oldTime = 1767225600000000000
	// Four files, one of which is stored by its content, the list itself by content, and how
	// content is stored.
	oldFiles = "\xa2\x00\x01\x01\x84" + "\xa5\x01aa\x02\x19\x01\xa0\x03\x07\x04" + oldAt + "\x05Ginline\n" +
		"\xa3\x01ad\x02\x1a\x80\x00\x01\xed\x04" + oldAt +
		"\xa5\x01cd/b\x02\x19\x01\x80\x03\x0b\x04" + oldAt + "\x06X " + oldSum +
		"\xa4\x01al\x02\x1a\x08\x00\x01\xff\x04" + oldAt + "\x07aa"
	oldAt       = "\x1b\x18\x86rQ\xed\xfa\x00\x00"
	oldContent  = "by content\n"
	oldSum      = "\x8e%\x90\r\xe7\x93\xf1\x89\x1a\xd8\xa4\xa1\xf7\xe5\x9f\x95\x05c\rEcu\xb1\xe8\x92\n\xfb\x92QJ\x91\xf6"
	oldFilesSum = "(Z\x04\x82\x0c\xda\xc5i&\xdd\x9d\xccH\xfbm[ \x94\xd8\xd4:g#\x1a&\x9bz\xedI\xa5\x0f\xd4"
	oldBlob     = "\xa3\x00\x01\x01iold-bytes\x02\x0b"
	oldListBlob = "\xa3\x00\x01\x01hold-list\x02\x18\x86"
	// Tasks: one with everything, whose files are in it, and one whose list of files is not.
	oldWhole = "\xac\x00\x01\x01\x83g/bin/shb-cx&cat b ../l; cat; echo $A; cp b ../kept\x02ad\x03\x81eA=env\x04Cin\n" +
		"\x05\xa7\x01\x1a\x04\x00\x00\x00\x02\xf98\x00\x03\x18 \x04\x1b\x00\x00\x00\r\xf8GX\x00\x05\x1b\x00\x00\x00\r\xf8GX\x00\x06\x1a\x00\x10\x00\x00\x07\x1a\x00 \x00\x00" +
		"\x06\xa1\x01" + oldFiles + "\x07\x81dkept\x08\xa3\x01\x02\x02\xf5\x03\x1a;\x9a\xca\x00\x09" + oldAt + "\x0a\x1b\x18\x86rQ\xed\xfa\x00\x01\x0b\x1b7\x82\xda\xce\x9d\x90\x00\x00"
	oldLong = "\xa6\x00\x01\x01\x83g/bin/shb-cicat a d/b\x05\xa0\x06\xa2\x02X " + oldFilesSum + "\x03\x18\x86\x08\xa0\x09" + oldAt
	// A call for the build oldBuild, in whose place the test has its own.
	oldCall  = "\xa7\x00\x01\x01\xf6\x05\xa0\x06\xa1\x01\xa2\x00\x01\x01\x81\xa4\x01evalue\x02\x19\x01\x80\x03\x0c\x05L\xa2bDodechoaN\x07\x08\xa0\x09" + oldAt + "\x0c\xa2\x01easked\x02x@" + oldBuild
	oldBuild = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
	// Services, and a replica of the first.
	oldService    = "\xa8\x00\x01\x01x@" + oldDefinition + "\x02gdefault\x03\xa6\x00\x01\x01\x83g/bin/shb-cjsleep 1000\x05\xa0\x08\xa0\x09\x00\r\xa1\x01cweb" + oldReplicas
	oldDefinition = "5ea5e7b4c5c1fac7e295b72f2ad1e4c349bb8b9b4ee81a482e4e8484b261f850"
	oldReplicas   = "\x04\x02\x05\x81tdefault.normal-s.new\x06\x81tdefault.normal-s.old\x07hnormal-s"
	oldReplica    = "\xa6\x00\x01\x01\x83g/bin/shb-cjsleep 1000\x05\xa0\x08\xa0\x09" + oldAt + "\r\xa1\x01cweb"
	oldWeb        = "\xa8\x00\x01\x01x@" + oldDefinition + "\x02gdefault\x03\xa6\x00\x01\x01\x83g/bin/shb-cjsleep 1000\x05\xa0\x08\xa0\x09\x00\r\xa3\x01cweb\x02\x19\x1f\x90\x03g/health" + oldReplicas
	// Ends: with everything that a command may leave, and of a call that was given up.
	oldDone = "\xab\x00\x01\x01\x03\x02\x02\x03aw\x04\x03\x05\x04\x06\x1b\x18\x86rQ\xed\xfa\x00\x09\x07cwhy\x08\xa9\x01\x07\x03fexited\x04\xab\x01\x01\x02\x02\x03\x03\x04\x04\x05\x05\x06\x06\x07\x07\x08\x08\x09\x09\n\n\x0b\x81fmemory" +
		"\x05Cout\x06Cerr\x07\xa2\x02X " + oldFilesSum + "\x03\x18\x86\x08\x81am\x09\x05\n" + oldAt + "\x09\x06\n\x01"
	oldDead = "\xa9\x00\x01\x01\x04\x02\x03\x03aw\x04\x01\x05\x03\x06" + oldAt + "\x07pafter 3 attempts\x08\xa7\x01\x00\x02\x09\x03hsignaled\x04\xa1\x01\x00\n" + oldAt +
		"\x0b\xa4\x01easked\x02epanic\x03bno\x04bat\x0citoo large"
)

// A queue is taken over by a program of another version while tasks wait in it.
func TestUpgrade(t *testing.T) {
	ctx := testkit.Deadline(t)
	dir := t.TempDir()
	q := open(t, Dir(dir))
	for id, data := range map[string]string{"task.default.normal.old": oldTask, "task.default.normal.later": laterTask, "task.default.normal.newer": newerTask,
		"state.default.normal.done": oldState, "state.default.normal.ahead": newerState} {
		_, err := q.js.Publish(ctx, q.config.name+"."+id, []byte(data), jetstream.WithExpectLastSequencePerSubject(0))
		require.NoError(t, err)
	}
	q.Close()

	q = open(t, Dir(dir))
	work(t, q)
	require.Equal(t, "old", text(mustWait(t, q, "default.normal.old").Stdout))
	require.Equal(t, "later", text(mustWait(t, q, "default.normal.later").Stdout))
	res, err := q.Wait(ctx, "default.normal.done")
	require.Equal(t, 7, res.ExitCode)
	require.ErrorContains(t, err, "7")
	_, err = q.Wait(ctx, "default.normal.ahead")
	require.ErrorIs(t, err, errNewer)

	// The worker has had the newer one, which was before others; it waits for a newer worker.
	last := submit(t, q, Task{Command: shell("true")})
	mustWait(t, q, last)
	m, err := q.taskMessage(ctx, "default.normal.newer")
	require.NoError(t, err)
	require.Equal(t, newerTask, string(m.Data))
	_, err = q.Status(ctx, "default.normal.newer")
	require.ErrorIs(t, err, errNewer)
	for s, err := range q.Dead(ctx) {
		require.NoError(t, err)
		require.Empty(t, s, "nothing was given up")
	}
}

// So are calls, services, files and dead letters.
func TestUpgradeKinds(t *testing.T) {
	ctx := testkit.Deadline(t)
	dir := t.TempDir()
	build, err := BuildID()
	require.NoError(t, err)
	lane := "default.normal-b" + build[:buildDigits] + "."
	call := strings.Replace(oldCall, oldBuild, build, 1)
	q := open(t, Dir(dir))
	for subject, data := range map[string]string{
		"chunk.old-bytes.0": oldContent, "blob.8e25900de793f1891ad8a4a1f7e59f9505630d456375b1e8920afb92514a91f6": oldBlob,
		"chunk.old-list.0": oldFiles, "blob.285a04820cdac56926dd9dcc48fb6d5b2094d8d43a67231a269b7aed49a50fd4": oldListBlob,
		"task.default.normal.whole": oldWhole, "task.default.normal.long": oldLong, "task." + lane + "call": call,
		"task.default.normal-s.new": oldReplica, "service.web": oldService,
		"state.default.normal.done": oldDone, "state." + lane + "dead": oldDead, "dead." + lane + "dead": call,
	} {
		_, err := q.js.Publish(ctx, "sandbox."+subject, []byte(data), jetstream.WithExpectLastSequencePerSubject(0))
		require.NoError(t, err)
	}
	q.Close()

	q = open(t, Dir(dir))
	work(t, q, TakeServices("127.0.0.1"))
	read := func(files fs.FS, name string) string {
		t.Helper()
		b, err := fs.ReadFile(files, name)
		require.NoError(t, err)
		return string(b)
	}
	res := mustWait(t, q, "default.normal.whole")
	require.Equal(t, "by content\ninline\nin\nenv\n", string(res.Stdout))
	require.Equal(t, oldContent, read(res.Outputs, "kept"))
	require.Equal(t, "inline\nby content\n", string(mustWait(t, q, "default.normal.long").Stdout))
	out, err := WaitCall(ctx, q, asked, lane+"call")
	require.NoError(t, err)
	require.Equal(t, map[string]int{"n": 7}, out.In)
	res, err = q.Wait(ctx, "default.normal.done")
	require.ErrorContains(t, err, "7")
	require.Equal(t, "inline\n", read(res.Outputs, "l"))

	// Its definition is the same, so what runs goes on.
	require.NoError(t, q.Serve(ctx, Service{Name: "web", Task: Task{Command: shell("sleep 1000")}}))
	s := statusOfService(t, q, "web")
	require.Len(t, s.Replicas, 1)
	require.Equal(t, "default.normal-s.new", s.Replicas[0].ID)
	require.Equal(t, 1, s.Replicas[0].Attempt)
	require.Empty(t, s.Old)
	require.NoError(t, q.StopService(ctx, "web"))

	var dead []string
	for s, err := range q.Dead(ctx) {
		require.NoError(t, err)
		dead = append(dead, s.ID+" "+s.Text)
	}
	require.Equal(t, []string{lane + "dead after 3 attempts"}, dead)
	var panicked *function.PanicError
	_, err = WaitCall(ctx, q, asked, lane+"dead")
	require.ErrorAs(t, err, &panicked)
	require.NoError(t, q.Requeue(ctx, lane+"dead"))
	out, err = WaitCall(ctx, q, asked, lane+"dead")
	require.NoError(t, err, "it was written again, and lost nothing")
	require.Equal(t, map[string]int{"n": 7}, out.In)
}

// Each field of an old record means what it did, and is written as it was, so that older programs
// read what this one writes.
func TestUpgradeFields(t *testing.T) {
	files := &bundleRecord{Version: 1, Entries: []entry{
		{Name: "a", Mode: 0o640, Size: 7, Modified: oldTime, Data: []byte("inline\n")},
		{Name: "d", Mode: fs.ModeDir | 0o755, Modified: oldTime},
		{Name: "d/b", Mode: 0o600, Size: 11, Modified: oldTime, Sum: []byte(oldSum)},
		{Name: "l", Mode: fs.ModeSymlink | 0o777, Modified: oldTime, Link: "a"},
	}}
	list := &bundle{Sum: []byte(oldFilesSum), Size: int64(len(oldFiles))}
	value := &bundle{Inline: &bundleRecord{Version: 1, Entries: []entry{{Name: callFile, Mode: 0o600, Size: 12, Data: []byte("\xa2bDodechoaN\x07")}}}}
	replica := &taskRecord{Version: 1, Command: shell("sleep 1000"), Replica: &replicaRecord{Service: "web", Port: 8080, Health: "/health"}}
	same(t, oldFiles, files)
	same(t, oldBlob, &blobRecord{Version: 1, Upload: "old-bytes", Size: 11})
	same(t, oldWhole, &taskRecord{Version: 1, Command: shell("cat b ../l; cat; echo $A; cp b ../kept"), Dir: "d", Env: []string{"A=env"}, Stdin: []byte("in\n"),
		Limits: Limits{Memory: 64 << 20, CPUs: 0.5, PIDs: 32, CPUTime: time.Minute, Timeout: time.Minute, Output: 1 << 20, Files: 2 << 20}, Inputs: &bundle{Inline: files},
		Outputs: []string{"kept"}, Retry: Retry{Attempts: 2, Failures: true, Backoff: time.Second}, Submitted: oldTime, NotBefore: oldTime + 1, Deadline: 4e18})
	same(t, oldLong, &taskRecord{Version: 1, Command: shell("cat a d/b"), Inputs: list, Submitted: oldTime})
	same(t, oldCall, &taskRecord{Version: 1, Inputs: value, Submitted: oldTime, Call: &callRecord{Func: "asked", Build: oldBuild}})
	same(t, oldWeb, &serviceRecord{Version: 1, Definition: oldDefinition, Class: "default", Task: replica, Batch: 2, IDs: []string{"default.normal-s.new"}, Old: []string{"default.normal-s.old"}, Route: "normal-s"})
	same(t, oldDone, &stateRecord{Version: 1, State: Done, Attempt: 2, Worker: "w", Message: 3, Delivered: 4, Spared: 1, At: oldTime + 9, Text: "why", Next: 6, Run: &runRecord{ExitCode: 7, Reason: "exited",
		Usage:  usageRecord{Wall: 1, UserCPU: 2, SystemCPU: 3, Throttled: 4, MemoryPeak: 5, ReadBytes: 6, WriteBytes: 7, PIDsPeak: 8, OOMKills: 9, PIDsRefused: 10, Uncounted: []string{"memory"}},
		Stdout: []byte("out"), Stderr: []byte("err"), Outputs: list, Missing: []string{"m"}, Cut: 5, Started: oldTime}})
	same(t, oldDead, &stateRecord{Version: 1, State: Dead, Attempt: 3, Worker: "w", Message: 1, Delivered: 3, At: oldTime, Text: "after 3 attempts", Run: &runRecord{Signal: 9, Reason: "signaled", Started: oldTime,
		Lost: "too large", Call: &answerRecord{Func: "asked", Kind: "panic", Text: "no", Stack: "at"}}})

	require.Equal(t, []State{1, 2, 3, 4, 5, 6}, []State{Waiting, Running, Done, Dead, Canceled, Expired})
	for name, reason := range map[string]sandbox.Reason{"exited": sandbox.Exited, "signaled": sandbox.Signaled, "timed out": sandbox.TimedOut, "out of CPU time": sandbox.CPUTimedOut, "out of memory": sandbox.OutOfMemory,
		"too much output": sandbox.OutputExceeded, "canceled": sandbox.Canceled, "too many processes": sandbox.PIDsExceeded, "the run has ended": sandbox.RunEnded} {
		res, err := (&runRecord{Reason: name}).result()
		require.NoError(t, err)
		require.Equal(t, reason, res.Reason)
	}
	require.ErrorContains(t, (&answerRecord{Kind: "error", Text: "it failed"}).err(""), "it failed")
	require.ErrorIs(t, (&answerRecord{Kind: "no answer"}).err(""), function.ErrNoAnswer)
	require.ErrorIs(t, (&answerRecord{Kind: "too large"}).err(""), function.ErrMessageLimit)
	// The same key is the same task, and a tenant keeps its lane.
	require.Equal(t, "default.normal.8254c329a92850f6d539dd376f4816ee", (&Task{Key: "k"}).id(""))
	require.Equal(t, "gpu.high-bffffffffffff-t2d.fb6e1509b87b03bf27407cd45ca2da10", (&Task{Key: "k", Tenant: "x", Class: "gpu", Priority: High}).id(oldBuild))
	require.Equal(t, "s-t2d", laneOf(serviceKind, "x"))
}

// same requires that an old record says what r does, and that r is written so.
func same[T versioned](t *testing.T, old string, r *T) {
	t.Helper()
	got, err := decode[T]([]byte(old))
	require.NoError(t, err)
	require.Equal(t, r, got)
	b, err := encode(r)
	require.NoError(t, err)
	require.Equal(t, []byte(old), b)
}
