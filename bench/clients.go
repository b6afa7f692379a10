//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cellkit/sandbox"
)

// client is a program in a network, which reads what to do from its standard input, and prints how
// long it took. The programs are this one.
type client struct {
	in   io.WriteCloser
	out  *lineReader
	pid  int    // of a command of the host
	kill func() // ends it
}

// patience is how long a client may take for one thing, so that none holds up the others.
const patience = 30 * time.Second

// line returns the next line that it prints, if that comes in time; else it is over.
func (c *client) line() (string, error) {
	defer time.AfterFunc(patience, c.kill).Stop()
	return c.out.line()
}

type lineReader struct{ r io.Reader }

func (l *lineReader) line() (string, error) {
	var text []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(l.r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(text), nil
		}
		text = append(text, b[0])
	}
}

// ask has the client do something, and returns what it says.
func (c *client) ask(what ...any) (string, error) {
	if _, err := fmt.Fprintln(c.in, what...); err != nil {
		return "", err
	}
	return c.line()
}

func (c *client) took(what ...any) (time.Duration, error) {
	text, err := c.ask(what...)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		err = errors.New(text)
	}
	return time.Duration(n), err
}

// beClientOrServer does what this program is inside.
func beClientOrServer() bool {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "client":
		beClient()
	case len(os.Args) == 3 && os.Args[1] == "server":
		must(beServer(os.Args[2]))
	default:
		return false
	}
	return true
}

// beClient serves as a client: "send ADDRESS BYTES", "receive ADDRESS BYTES", "first ADDRESS",
// "hold ADDRESS COUNT", and "find NAME" with the address of another resolver, if any.
func beClient() {
	in := &lineReader{os.Stdin}
	var held []net.Conn
	defer func() {
		for _, conn := range held {
			conn.Close()
		}
	}()
	for {
		line, err := in.line()
		if err != nil {
			return
		}
		f := strings.Fields(line)
		n := 0
		if len(f) > 2 {
			n, _ = strconv.Atoi(f[2])
		}
		began := time.Now()
		if f[0] == "find" {
			err = find(f[1], f[2:]...)
		} else if f[0] == "named" {
			err = transfer("first", f[1], 0, f[2:]...)
		} else if f[0] == "hold" {
			for range n {
				var conn net.Conn
				if conn, err = net.Dial("tcp", f[1]); err == nil {
					_, err = fmt.Fprintln(conn, "receive 1")
				}
				if err == nil {
					_, err = io.ReadFull(conn, make([]byte, 1))
				}
				if err != nil {
					break
				}
				held = append(held, conn)
			}
		} else {
			err = transfer(f[0], f[1], n)
		}
		if took := time.Since(began); err == nil {
			fmt.Println(int64(took))
		} else {
			fmt.Println(err)
		}
	}
}

// find looks a name up, as net.Dial does.
func find(name string, at ...string) error {
	_, err := resolverAt(at).LookupHost(context.Background(), name)
	return err
}

// resolverAt asks the server at an address, or the machine's.
func resolverAt(at []string) *net.Resolver {
	r := &net.Resolver{PreferGo: true}
	if len(at) > 0 {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, at[0])
		}
	}
	return r
}

func transfer(kind, address string, n int, resolvedAt ...string) error {
	conn, err := (&net.Dialer{Resolver: resolverAt(resolvedAt)}).Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if kind == "first" {
		kind, n = "receive", 1
	}
	if _, err := fmt.Fprintln(conn, kind, n); err != nil {
		return err
	}
	if kind == "send" {
		if err := move(conn, nothing{}, n); err != nil {
			return err
		}
		n = 1 // once it has all
	}
	return move(io.Discard, conn, n)
}

// move copies n bytes with large reads and writes.
func move(to io.Writer, from io.Reader, n int) error {
	got, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{io.LimitReader(from, int64(n))}, make([]byte, min(n, 256<<10)))
	if err == nil && got < int64(n) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

type nothing struct{}

func (nothing) Read(b []byte) (int, error) { return len(b), nil }

// beServer serves clients at an address.
func beServer(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	serveClients(l)
	return nil
}

func serveClients(l net.Listener) {
	for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
		go func() {
			defer conn.Close()
			line, err := (&lineReader{conn}).line()
			if err != nil {
				return
			}
			var kind string
			var n int
			_, _ = fmt.Sscan(line, &kind, &n)
			if kind == "send" {
				_ = move(io.Discard, conn, n)
				n = 1
			}
			_ = move(conn, nothing{}, n)
			_, _ = io.Copy(io.Discard, conn)
		}()
	}
}

// inside starts this program in a sandbox, and returns its streams.
func inside(args []string, opts ...sandbox.Option) (*client, *sandbox.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	in, toIn := io.Pipe()
	fromOut, out := io.Pipe()
	s := sandbox.New(sandbox.WithCommand("/bench", args...), sandbox.WithReadOnlyBind(exe, "/bench"), sandbox.WithRlimit("nofile", 8192, 8192),
		sandbox.WithStdin(in), sandbox.WithStdout(out), sandbox.WithStderr(os.Stderr)).With(opts...)
	p, err := s.Start(context.Background())
	if err != nil {
		return nil, nil, err
	}
	return &client{in: toIn, out: &lineReader{fromOut}, kill: func() { _ = p.Kill(); out.Close() }}, p, nil
}

// outside starts a command of the host, which ends with this process.
func outside(argv ...string) (*client, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &client{in: in, out: &lineReader{out}, pid: cmd.Process.Pid, kill: func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }}
	started = append(started, func() { c.kill(); _ = cmd.Wait() })
	return c, nil
}

// started ends the commands of the host.
var started []func()
