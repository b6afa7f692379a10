//go:build linux

package sandbox_test

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"
	"testing/fstest"
	"time"

	"github.com/cellkit/sandbox"
)

func ExampleNew() {
	ctx := context.Background()
	out, err := sandbox.New(
		sandbox.WithCommand("python3", "-c", "print(6*7)"),
		sandbox.WithMemory(64*sandbox.MiB),
		sandbox.WithTimeout(20*time.Second),
	).Output(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output: 42
}

// The error of a run that a limit ended differs from that of every other end.
func ExampleExitError() {
	_, err := sandbox.New(
		sandbox.WithCommand("sh", "-c", "while :; do :; done"),
		sandbox.WithCPUTime(200*time.Millisecond),
	).Run(context.Background())
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		fmt.Println(exit.Reason, errors.Is(err, sandbox.ErrCPUTime), exit.Usage.UserCPU > 0)
	}
	// Output: out of CPU time true true
}

// All wrong options of a sandbox are reported at once, each by its name.
func ExampleOptionError() {
	_, err := sandbox.New(sandbox.WithCommand("true"), sandbox.WithDir("work"), sandbox.WithPIDs(-1)).Run(context.Background())
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range all.Unwrap() {
			var wrong *sandbox.OptionError
			if errors.As(err, &wrong) {
				fmt.Printf("%s is wrong: %v\n", wrong.Option, wrong.Err)
			}
		}
	}
	// Output:
	// WithDir is wrong: "work" is not an absolute path
	// WithPIDs is wrong: -1 is less than 1
}

// One sandbox describes many runs.
func ExampleSandbox_With() {
	base := sandbox.New(sandbox.WithMemory(64*sandbox.MiB), sandbox.WithTimeout(time.Minute))
	for _, text := range []string{"one", "two"} {
		out, err := base.With(
			sandbox.WithCommand("tr", "a-z", "A-Z"),
			sandbox.WithStdin(strings.NewReader(text)),
		).Output(context.Background())
		fmt.Printf("%s %v\n", out, err)
	}
	// Output:
	// ONE <nil>
	// TWO <nil>
}

// Runs that were prepared wait for a command, and for its files in /tmp.
func ExampleWithPrepared() {
	ctx := context.Background()
	base := sandbox.New(sandbox.WithMemory(64*sandbox.MiB), sandbox.WithPrepared(2))
	if err := base.Prepare(ctx); err != nil { // or leave that to the second start
		log.Fatal(err)
	}
	for _, text := range []string{"one", "two", "three"} {
		script := []byte("echo -n " + text)
		out, err := base.With(sandbox.WithFile("/tmp/script", script, 0o644), sandbox.WithCommand("sh", "/tmp/script")).Output(ctx)
		fmt.Printf("%s %v\n", out, err)
	}
	// Output:
	// one <nil>
	// two <nil>
	// three <nil>
}

func ExampleSandbox_Start() {
	p, err := sandbox.New(sandbox.WithCommand("sleep", "1000")).Start(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	if err := p.Signal(os.Interrupt); err != nil {
		log.Fatal(err)
	}
	res, err := p.Wait()
	fmt.Println(res.Reason, res.Signal, err)
	// Output: signaled interrupt sandbox: signal: interrupt
}

// A session that needs more gets more, without a new start.
func ExampleProcess_Update() {
	ctx := context.Background()
	session, err := sandbox.New(sandbox.WithHold(), sandbox.WithMemory(32*sandbox.MiB)).Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	if err := session.Update(sandbox.WithMemory(256*sandbox.MiB), sandbox.WithTimeout(time.Hour)); err != nil {
		log.Fatal(err)
	}
	x, err := session.Exec(ctx, sandbox.WithCommand("sh", "-c", "head -c 64M /dev/zero >/tmp/file && ls /tmp"), sandbox.WithStdout(os.Stdout))
	if err != nil {
		log.Fatal(err)
	}
	_, err = x.Wait()
	fmt.Println(err)
	// Output:
	// file
	// <nil>
}

// Why does it not work? The filter refused something, and an option would allow it.
func ExampleWithRefusals() {
	_, err := sandbox.New(
		sandbox.WithCommand("sh", "-c", "touch job && chmod u+s job"),
		sandbox.WithRefusals(func(r sandbox.Refusal) {
			if r.Path == "" {
				fmt.Printf("%s: %v: %s allows it\n", r.Comm, r.Errno, r.Option)
			}
		}),
	).Run(context.Background())
	fmt.Println(err)
	// Output:
	// chmod: operation not permitted: WithSetID allows it
	// sandbox: exit status 1
}

// Files of the job go in through WithFile and out through a bind.
func ExampleWithBind() {
	dir, err := os.MkdirTemp("", "results")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	_, err = sandbox.New(
		sandbox.WithCommand("sh", "-c", "sort words > /results/sorted"),
		sandbox.WithFile("/home/sandbox/words", []byte("pear\napple\n"), 0o644),
		sandbox.WithBind(dir, "/results"),
	).Run(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	sorted, err := os.ReadFile(dir + "/sorted")
	fmt.Printf("%s%v\n", sorted, err)
	// Output:
	// apple
	// pear
	// <nil>
}

// One run writes what the next executes, and this process reads what the second run left.
func ExampleNewScratch() {
	scratch, err := sandbox.NewScratch(16 * sandbox.MiB)
	if err != nil {
		log.Fatal(err)
	}
	defer scratch.Close()
	sources := fstest.MapFS{"build.sh": {Data: []byte("printf '#!/bin/sh\\necho made > /out/result\\n' > tool && chmod 755 tool")}}
	if err := scratch.CopyIn(sources, "src"); err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	build := sandbox.New(sandbox.WithScratch("/job", scratch), sandbox.WithDir("/job/src"), sandbox.WithCommand("sh", "build.sh"))
	if _, err := build.Run(ctx); err != nil {
		log.Fatal(err)
	}
	results, err := sandbox.NewScratch(sandbox.MiB)
	if err != nil {
		log.Fatal(err)
	}
	defer results.Close()
	test := sandbox.New(sandbox.WithReadOnlyScratch("/job", scratch), sandbox.WithScratch("/out", results), sandbox.WithCommand("/job/src/tool"))
	if _, err := test.Run(ctx); err != nil {
		log.Fatal(err)
	}
	b, err := fs.ReadFile(results.FS(), "result")
	fmt.Printf("%s%v\n", b, err)
	// Output:
	// made
	// <nil>
}

//go:embed example_test.go
var embedded embed.FS

// Files that are compiled into this program are in every run.
func ExampleWithFS() {
	out, err := sandbox.New(sandbox.WithFS("/opt/app", embedded), sandbox.WithCommand("ls", "/opt/app")).Output(context.Background())
	fmt.Printf("%s%v\n", out, err)
	// Output:
	// example_test.go
	// <nil>
}

func ExampleDirRootfs() {
	// A directory that holds a whole system works the same: a container image that was
	// unpacked, or what debootstrap makes.
	root, err := os.MkdirTemp("", "root")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(root)
	if err := os.Chmod(root, 0o755); err != nil {
		log.Fatal(err)
	}
	for _, dir := range []string{"usr", "lib", "lib64", "bin"} {
		if err := os.Mkdir(root+"/"+dir, 0o755); err != nil {
			log.Fatal(err)
		}
	}
	out, err := sandbox.New(
		sandbox.WithRootfs(sandbox.DirRootfs(root)),
		sandbox.WithReadOnlyBind("/usr", "/usr"),
		sandbox.WithReadOnlyBind("/lib", "/lib"),
		sandbox.WithReadOnlyBind("/lib64", "/lib64"),
		sandbox.WithReadOnlyBind("/bin", "/bin"),
		sandbox.WithCommand("ls", "/"),
	).Output(context.Background())
	fmt.Println(strings.Fields(string(out)), err)
	// Output: [bin dev etc home lib lib64 proc sys tmp usr] <nil>
}

// The files of a service and its configuration are layers of the root, below the host's programs.
func ExampleLayersRootfs() {
	layer := func(name, content string) string {
		dir, err := os.MkdirTemp("", "layer")
		if err != nil {
			log.Fatal(err)
		}
		err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(dir+"/srv", 0o755), os.WriteFile(dir+"/srv/"+name, []byte(content), 0o644))
		if err != nil {
			log.Fatal(err)
		}
		return dir
	}
	service, config := layer("serve.sh", "cat /srv/name"), layer("name", "layers")
	defer os.RemoveAll(service)
	defer os.RemoveAll(config)
	host := func(dir string) sandbox.Option { return sandbox.WithReadOnlyBind(dir, dir) }
	out, err := sandbox.New(
		sandbox.WithRootfs(sandbox.LayersRootfs(service, config)),
		host("/usr"), host("/bin"), host("/lib"), host("/lib64"),
		sandbox.WithCommand("sh", "/srv/serve.sh"),
	).Output(context.Background())
	fmt.Println(string(out), err)
	// Output: layers <nil>
}

// A session: commands that find what those before them left.
func ExampleProcess_Exec() {
	ctx := context.Background()
	session, err := sandbox.New(sandbox.WithHold(), sandbox.WithTimeout(time.Minute)).Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	for _, script := range []string{"echo hello >/tmp/greeting", "cat /tmp/greeting", "exit 3"} {
		command, err := session.Exec(ctx, sandbox.WithCommand("sh", "-c", script), sandbox.WithStdout(os.Stdout))
		if err != nil {
			log.Fatal(err)
		}
		if _, err := command.Wait(); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// hello
	// sandbox: exit status 3
}

// Explain shows what a run does, call by call.
func ExampleSandbox_Explain() {
	text, err := sandbox.New(sandbox.WithCommand("true"), sandbox.WithHostname("job")).Explain()
	fmt.Println(strings.Contains(text, `sethostname("job", 3)`), err)
	// Output: true <nil>
}

// Two services on a network of their own, one of which is published.
func ExampleNewNetwork() {
	ctx := context.Background()
	network, err := sandbox.NewNetwork(
		sandbox.AllowHost("*.pypi.org", 443),
		sandbox.AllowCIDR("10.2.0.0/16", sandbox.TCP(5432)),
		sandbox.NetworkObserver(func(c sandbox.Conn) { fmt.Println(c.Run, c.Name, c.Verdict) }),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer network.Close()
	serve := `
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
	def do_GET(self):
		self.send_response(200); self.end_headers(); self.wfile.write(b"rows")
	def log_message(self, *args): pass
http.server.HTTPServer(("", 80), Handler).serve_forever()`
	db, err := sandbox.New(sandbox.WithCommand("python3", "-c", serve), sandbox.WithNetwork(network.As("db"))).Start(ctx)
	if err != nil {
		log.Fatal(err)
	}
	ask := `
import socket, time, urllib.request
try: socket.getaddrinfo("evil.example", 443)
except OSError as e: print(e)
while True:
	try: print(urllib.request.urlopen("http://db/").read().decode()); break
	except OSError: time.sleep(0.1)`
	out, err := sandbox.New(sandbox.WithCommand("python3", "-c", ask), sandbox.WithNetwork(network.As("web"))).Output(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	_ = db.Kill()
	_, _ = db.Wait()
	// Output:
	// web evil.example refused
	// [Errno -2] Name or service not known
	// rows
}
