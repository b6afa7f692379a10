//go:build linux

package sandboxtest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

var (
	touched = flag.String("touched", "", "a file that tests of samples write to, outside")
	word    = flag.String("word", "", "what TestSampleFlags expects")
)

// sample marks a test that other tests execute this test binary for, and that does nothing
// otherwise.
func sample(t *testing.T, opts ...sandbox.Option) {
	t.Helper()
	if *touched == "" {
		t.Skip("a sample for other tests")
	}
	Isolate(t, opts...)
	_ = os.WriteFile(*touched, []byte(t.Name()), 0o600) // this file must not be there afterwards
}

func TestSamplePass(t *testing.T) {
	sample(t)
	t.Log("logged", os.Getpid())
	fmt.Println("printed")
	t.Attr("color", "green")
	t.Run("sub test", func(t *testing.T) {
		t.Run("a/b", func(t *testing.T) { t.Log("deep") })
		t.Skip("skipped sub")
	})
	for i := range 3 {
		t.Run("parallel", func(t *testing.T) {
			t.Parallel()
			t.Log("number", i)
		})
	}
}

func TestSampleFail(t *testing.T) {
	t.Parallel()
	sample(t)
	defer t.Log("deferred")
	t.Run("good", func(t *testing.T) {})
	t.Run("bad", func(t *testing.T) { t.Fatal("fatal in sub") })
	t.Errorf("failed with\nlines")
}

func TestSampleSkip(t *testing.T) {
	sample(t)
	t.Skip("skipped inside")
}

func TestSamplePanic(t *testing.T) {
	sample(t)
	t.Run("sub", func(*testing.T) { panic("at the disco") })
}

func TestSampleExit(t *testing.T) {
	sample(t)
	os.Exit(3)
}

func TestSampleExitZero(t *testing.T) {
	sample(t)
	os.Exit(0)
}

func TestSampleMemory(t *testing.T) {
	sample(t, sandbox.WithMemory(128*sandbox.MiB))
	var hold [][]byte
	for range 1024 {
		hold = append(hold, bytes.Repeat([]byte{1}, int(sandbox.MiB)))
	}
	t.Log(len(hold))
}

func TestSampleSleep(t *testing.T) {
	sample(t)
	time.Sleep(time.Hour)
}

func TestSampleSetup(t *testing.T) {
	sample(t, sandbox.WithReadOnlyBind("/no/such/file", "/x"))
}

func TestSampleCommand(t *testing.T) {
	sample(t, sandbox.WithCommand("true"))
}

func TestSampleAbove(t *testing.T) {
	if _, err := os.Stat("isolate_test.go"); err != nil {
		t.Skip("there are no files inside")
	}
	t.Run("sub", func(t *testing.T) { sample(t) })
}

func TestSampleFlags(t *testing.T) {
	sample(t)
	require.Equal(t, "given", *word)
	require.True(t, testing.Short())
	require.Equal(t, []string{"an", "argument"}, flag.Args())
	t.Logf("%d CPUs", runtime.GOMAXPROCS(0))
}

func TestSampleChoices(t *testing.T) {
	sample(t)
	for _, name := range []string{"one", "two", "three"} {
		t.Run(name, func(t *testing.T) {
			Isolate(t) // does nothing
			t.Run("deep", func(*testing.T) {})
		})
	}
}

func TestSampleSub(t *testing.T) {
	if *touched == "" {
		t.Skip("a sample for other tests")
	}
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sample(t)
			if name == "two" {
				t.Error("two fails")
			}
		})
	}
}

func FuzzSample(f *testing.F) {
	if *touched == "" {
		f.Skip("a sample for other tests")
	}
	f.Add("seed")
	f.Fuzz(func(t *testing.T, s string) {
		sample(t)
		t.Log("got", s)
		if s == "bad" {
			t.Error("bad seed")
		}
	})
}

// samples executes this test binary for samples and returns what go test would print, and whether
// it passed.
func samples(t *testing.T, args ...string) (string, bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "touched")
	cmd := exec.Command("/proc/self/exe", append([]string{"-touched=" + file, "-test.v"}, args...)...)
	cmd.Env = append(os.Environ(), "TZ=Asia/Tokyo", "SECRET=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit, "%s", out)
		require.Equal(t, 1, exit.ExitCode(), "%s", out)
	}
	require.NoFileExists(t, file, "it ran outside: %s", out)
	text := regexp.MustCompile(`\(\d+\.\d+s\)`).ReplaceAllString(string(out), "(T)")
	text = regexp.MustCompile(`isolate_test\.go:\d+`).ReplaceAllString(text, "isolate_test.go:N")
	require.NotContains(t, text, "\x16")
	return text, err == nil
}

// requireLines requires that a text has the lines, in this order.
func requireLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	rest := "\n" + text
	for _, line := range lines {
		_, after, found := strings.Cut(rest, "\n"+line+"\n")
		require.True(t, found, "%q is not (there) in\n%s", line, text)
		rest = "\n" + after
	}
}

func TestRootlessIsolatePasses(t *testing.T) {
	t.Parallel()
	Need(t)
	out, ok := samples(t, "-test.run=^TestSamplePass$")
	require.True(t, ok, out)
	requireLines(t, out, "=== RUN   TestSamplePass", "    isolate_test.go:N: logged 2", "    printed", "=== ATTR  TestSamplePass color green",
		"=== RUN   TestSamplePass/sub_test", "=== RUN   TestSamplePass/sub_test/a/b", "    isolate_test.go:N: deep",
		"    isolate_test.go:N: skipped sub", "=== RUN   TestSamplePass/parallel", "=== RUN   TestSamplePass/parallel#02", "--- PASS: TestSamplePass (T)",
		"    --- SKIP: TestSamplePass/sub_test (T)", "        --- PASS: TestSamplePass/sub_test/a/b (T)", "    --- PASS: TestSamplePass/parallel (T)", "PASS")
	for i := range 3 {
		require.Contains(t, out, fmt.Sprint("number ", i))
	}
	out, ok = samples(t, "-test.run=^TestSamplePass$", "-test.count=3")
	require.True(t, ok, out)
	require.Equal(t, 3, strings.Count(out, "--- PASS: TestSamplePass (T)"))
}

func TestRootlessIsolateFails(t *testing.T) {
	t.Parallel()
	Need(t)
	out, ok := samples(t, "-test.run=^TestSample(Fail|Sub)$")
	require.False(t, ok)
	requireLines(t, out, "    isolate_test.go:N: fatal in sub", "    isolate_test.go:N: failed with", "        lines", "    isolate_test.go:N: deferred", "--- FAIL: TestSampleFail (T)",
		"    --- PASS: TestSampleFail/good (T)", "    --- FAIL: TestSampleFail/bad (T)")
	require.Contains(t, out, "two fails")
	requireLines(t, out, "--- FAIL: TestSampleSub (T)")
	requireLines(t, out, "    --- PASS: TestSampleSub/one (T)")
	requireLines(t, out, "    --- FAIL: TestSampleSub/two (T)")
}

func TestRootlessIsolateSkips(t *testing.T) {
	t.Parallel()
	Need(t)
	out, ok := samples(t, "-test.run=^TestSampleSkip$")
	require.True(t, ok)
	requireLines(t, out, "    isolate_test.go:N: skipped inside", "--- SKIP: TestSampleSkip (T)", "PASS")
}

// A process that does not end as a test does makes the test fail, with all that is known about the
// cause.
func TestRootlessIsolateDies(t *testing.T) {
	t.Parallel()
	Need(t)
	for name, want := range map[string][]string{
		"Panic":    {"at the disco", "isolate_test.go:N", "in its sandbox: its process: sandbox: exit status 2", "--- FAIL: TestSamplePanic/sub"},
		"Exit":     {"in its sandbox: its process: sandbox: exit status 3"},
		"ExitZero": {"unexpected call to os.Exit(0) during test", "in its sandbox: its process: sandbox: exit status 2"},
		"Sleep":    {"test timed out after", "in its sandbox: its process: sandbox: exit status 2", "time.Sleep"},
		"Setup":    {"the test did not run: sandbox: WithReadOnlyBind", "/no/such/file"},
		"Command":  {"the test did not run: sandbox: WithCommand: the test is the command"},
		"Above":    {"the test did not run: the tests above it run there too", "--- FAIL: TestSampleAbove/sub"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timeout := "10m"
			if name == "Sleep" {
				timeout = "15s"
				testkit.Need(t, "a machine that is not emulated") // getting there may take as long
			}
			out, ok := samples(t, "-test.run=^TestSample"+name+"$", "-test.timeout="+timeout)
			require.False(t, ok)
			require.Contains(t, out, "--- FAIL: TestSample"+name+" (T)")
			for _, w := range want {
				require.Contains(t, out, w)
			}
		})
	}
}

func TestRootlessIsolateLimits(t *testing.T) {
	t.Parallel()
	Need(t, "WithMemory")
	out, ok := samples(t, "-test.run=^TestSampleMemory$")
	require.False(t, ok)
	require.Contains(t, out, "out of memory")
}

// Flags of this process are those of the isolated one.
func TestRootlessIsolateFlags(t *testing.T) {
	t.Parallel()
	Need(t)
	out, ok := samples(t, "-test.run=^TestSampleFlags$", "-test.short", "-word=given", "-test.cpu=1,2", "an", "argument")
	require.True(t, ok, out)
	require.Contains(t, out, "1 CPUs")
	require.Contains(t, out, "2 CPUs")

	out, ok = samples(t, "-test.run=^TestSampleChoices$/o/d|SamplePass/x|NoSuch", "-test.skip=TestSampleChoices/two")
	require.True(t, ok, out)
	require.Contains(t, out, "TestSampleChoices/one/deep")
	require.NotContains(t, out, "TestSampleChoices/two")
	require.NotContains(t, out, "TestSampleChoices/three")
}

func TestRootlessIsolateFuzzSeeds(t *testing.T) {
	t.Parallel()
	Need(t)
	out, ok := samples(t, "-test.run=^FuzzSample$")
	require.False(t, ok)
	requireLines(t, out, "    isolate_test.go:N: got seed")
	require.Contains(t, out, "bad seed")
	requireLines(t, out, "    --- PASS: FuzzSample/seed#0 (T)")
	requireLines(t, out, "    --- FAIL: FuzzSample/bad (T)")
	out, ok = samples(t, "-test.run=^FuzzSample$/^seed#0$")
	require.True(t, ok, out)
	out, ok = samples(t, "-test.run=^NoTest$", "-test.fuzz=^FuzzSample$", "-test.fuzztime=1x", "-test.fuzzcachedir="+t.TempDir())
	require.False(t, ok)
	require.Contains(t, out, "can't have a process of its own")
}

// TestInside is isolated itself.
func TestRootlessInside(t *testing.T) {
	Isolate(t, sandbox.WithFile("/given", []byte("file"), 0o644), sandbox.WithEnv("GIVEN=1"))
	require.Equal(t, "UTC", os.Getenv("TZ"))
	require.Equal(t, "1", os.Getenv("GIVEN"))
	require.Empty(t, os.Getenv("GOPATH")+os.Getenv("USERNAME")+os.Getenv(isolatedEnv))
	require.Equal(t, 1000, os.Getuid())
	dir, err := os.Getwd()
	require.NoError(t, err)
	require.Equal(t, home, dir)
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	require.Empty(t, entries)
	b, err := os.ReadFile("/given")
	require.NoError(t, err)
	require.Equal(t, "file", string(b))
	for _, name := range []string{"/usr", "/root", "/bin/sh", "/etc/ssl"} {
		require.NoFileExists(t, name)
		require.NoDirExists(t, name)
	}
	exe, err := os.Executable()
	require.NoError(t, err)
	require.FileExists(t, exe)
	ifaces, err := net.Interfaces()
	require.NoError(t, err)
	require.Len(t, ifaces, 1)
	_, err = net.DialTimeout("tcp", "192.0.2.1:80", time.Second)
	require.Error(t, err)
	require.NoError(t, os.WriteFile(t.TempDir()+"/x", nil, 0o600))
	_, err = sandbox.New(sandbox.WithCommand("true")).Run(t.Context())
	require.ErrorContains(t, err, "nested")
}

func TestRootlessInsideWithTheHost(t *testing.T) {
	Isolate(t, sandbox.WithRootfs(sandbox.HostRootfs()))
	out, err := exec.Command("sh", "-c", "hostname 2>/dev/null || cat /etc/hostname").Output()
	require.NoError(t, err)
	require.Equal(t, "sandbox\n", string(out))
}

// A test on a network of its own reaches what that lists, and nothing else.
func TestRootlessInsideNetwork(t *testing.T) {
	var ports [2]int // of which one is listed
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		go func() {
			for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
				_, _ = conn.Write([]byte("outside"))
				conn.Close()
			}
		}()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	zone := testkit.NewZone(t, map[string]string{"one.test": "127.0.0.1", "two.test": "127.0.0.1"})
	network := sandbox.Private(sandbox.AllowHost("one.test", ports[0]), sandbox.AllowCIDR("127.0.0.1", sandbox.TCP(ports[0])), sandbox.NetworkResolver(zone.Resolver()))
	Isolate(t, sandbox.WithEnv(fmt.Sprint("LISTED=", ports[0]), fmt.Sprint("OTHER=", ports[1])), sandbox.WithNetwork(network))
	read := func(port string) string {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("one.test", port), testkit.Patience)
		if err != nil {
			return ""
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		return string(b)
	}
	require.Equal(t, "outside", read(os.Getenv("LISTED")))
	require.Empty(t, read(os.Getenv("OTHER")))
	var unknown *net.DNSError
	_, err := net.LookupHost("two.test")
	require.ErrorAs(t, err, &unknown)
	require.True(t, unknown.IsNotFound)
}

// What isolated tests cover is merged with the coverage of the others.
func TestRootlessIsolateCoverage(t *testing.T) {
	t.Parallel()
	Need(t)
	testkit.Need(t, "root")
	testkit.Need(t, "time to build programs")
	profile := filepath.Join(t.TempDir(), "profile")
	out, err := exec.Command("go", "test", "-count=1", "-cover", "-coverprofile="+profile, "./testdata/covered").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "coverage: 66.7% of statements")
	b, err := os.ReadFile(profile)
	require.NoError(t, err)
	for line, covered := range map[string]string{"covered.go:4": " 1", "covered.go:6": " 1", "covered.go:8": " 0"} {
		require.Regexp(t, line+".*"+covered+"\n", string(b))
	}
}

func TestOnly(t *testing.T) {
	for _, test := range []struct{ name, pattern, want string }{
		{"TestX", "", "^TestX$"},
		{"TestX", "TestX", "^TestX$"},
		{"TestX", "Test(X|Y)/a", "^TestX$/a"},
		{"TestX/a", "X", "^TestX$/^a$"},
		{"TestX/a", "X/a/b", "^TestX$/^a$/b"},
		{"TestX", "X/a|Y/b|[X/]/c|X", "^TestX$/a|^TestX$/c|^TestX$"},
		{"TestX/a.b", "X", `^TestX$/^a\.b$`},
		{"TestX", "(", "^TestX$"},
		{"TestX", `X/a\/b`, `^TestX$/a\/b`},
	} {
		require.Equal(t, test.want, only(test.name, test.pattern), "%s with %s", test.name, test.pattern)
	}
}

func TestParser(t *testing.T) {
	text := "lost\x16=== RUN   TestX\nout\x16=== RUN   TestX/a/b\nin b\n\x16=== NAME  TestX\nmore\n\x16=== CONT  TestX/a/b\n\x16noise\n\x16--- PASS: TestX/a/b (0.10s)\n" +
		"\x16=== NAME  TestX\n\x16=== ATTR  TestX k v w\n\x16--- FAIL: TestX (0.20s)\nafter\n\x16=== NAME  \n\x16FAIL\n"
	for _, size := range []int{1, 2, 7, len(text)} {
		p := newParser("TestX")
		for i := 0; i < len(text); i += size {
			n, err := p.Write([]byte(text[i:min(i+size, len(text))]))
			require.NoError(t, err)
			require.Positive(t, n)
		}
		r := p.conclude(errors.New("why"))
		require.Equal(t, failed, r.status)
		require.Equal(t, "its process: why", r.problem)
		sub := &result{name: "TestX/a/b", status: passed, items: []item{{text: []byte("in b\nnoise\n")}}}
		require.Equal(t, []item{{text: []byte("out")}, {sub: sub}, {text: []byte("more\n")}, {key: "k", value: "v w"}, {text: []byte("lostafter\n")}}, r.items)
	}
	require.Contains(t, newParser("TestX").conclude(nil).problem, "the test did not run: the tests above it run there too")
	p := newParser("TestX")
	_, _ = p.Write([]byte("\x16=== RUN   TestX\nx\x16=== incomplete"))
	r := p.conclude(nil)
	require.Equal(t, "its process ended in the middle of the test", r.problem)
	require.Equal(t, []item{{text: []byte("x=== incomplete")}}, r.items)
}

// FuzzParser has a process write anything.
func FuzzParser(f *testing.F) {
	f.Add([]byte("\x16=== RUN   TestX\n\x16=== RUN   TestX/a\nx\x16--- PASS: TestX/a (0.00s)\n\x16--- PASS: TestX (0.00s)\n\x16PASS\n"), 0)
	f.Add([]byte("\x16=== RUN   TestX//\n\x16=== RUN   TestX/\n\x16=== ATTR  TestX/ \n"), 1)
	f.Fuzz(func(t *testing.T, b []byte, code int) {
		p := newParser("TestX")
		_, _ = p.Write(b)
		var err error
		if code != 0 {
			err = &sandbox.ExitError{Result: &sandbox.Result{ExitCode: code}}
		}
		r := p.conclude(err)
		require.True(t, err == nil || r.status == failed, "a process that fails has a test that does")
		seen := map[*result]bool{}
		var check func(r *result)
		check = func(r *result) {
			require.False(t, seen[r], "in two places")
			seen[r] = true
			for _, i := range r.items {
				if i.sub != nil {
					require.Greater(t, len(i.sub.name), len(r.name))
					require.True(t, strings.HasPrefix(i.sub.name, r.name+"/"))
					check(i.sub)
				}
			}
		}
		check(r)
	})
}
