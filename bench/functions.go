//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/bench/work"
	"github.com/cellkit/sandbox/function"
)

var isolated = function.New("work", func(_ context.Context, in []byte) ([]byte, error) { return work.Do(in), nil }, function.Options(limits...))

// plain is a plugin in a child process: net/rpc over a socket, as in hashicorp/go-plugin, or one
// call over its standard streams.
const (
	plainServer = "bench-plain-server"
	plainOnce   = "bench-plain-once"
)

// beChild serves calls if this process is the child.
func beChild() bool {
	if len(os.Args) != 2 {
		return false
	}
	switch os.Args[1] {
	case plainServer:
		conn, err := net.FileConn(os.NewFile(3, "calls"))
		must(err)
		server := rpc.NewServer()
		must(server.RegisterName("Plain", plain{}))
		server.ServeConn(conn)
	case plainOnce:
		in, err := io.ReadAll(os.Stdin)
		must(err)
		_, err = os.Stdout.Write(work.Do(in))
		must(err)
	default:
		return false
	}
	return true
}

type plain struct{}

// Do calls the function in the form that net/rpc expects.
func (plain) Do(in []byte, out *[]byte) error { *out = work.Do(in); return nil }

func startPlain() (*rpc.Client, func(), error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	defer near.Close()
	defer far.Close()
	conn, err := net.FileConn(near)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("/proc/self/exe", plainServer)
	cmd.ExtraFiles = []*os.File{far}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	client := rpc.NewClient(conn)
	return client, func() { client.Close(); _ = cmd.Wait() }, nil
}

// module is the function in a WebAssembly runtime.
type module struct {
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
}

func newModule(ctx context.Context, dir string) (*module, error) {
	file := filepath.Join(dir, "function.wasm")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", file, "./wasm")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w\n%s", build.Args, err, out)
	}
	code, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := &module{runtime: wazero.NewRuntime(ctx)}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, m.runtime); err != nil {
		return nil, err
	}
	m.compiled, err = m.runtime.CompileModule(ctx, code)
	return m, err
}

func (m *module) instance(ctx context.Context) (api.Module, error) {
	return m.runtime.InstantiateModule(ctx, m.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize"))
}

func do(ctx context.Context, in api.Module, b []byte) ([]byte, error) {
	at, err := in.ExportedFunction("address").Call(ctx)
	if err != nil {
		return nil, err
	}
	if !in.Memory().Write(uint32(at[0]), b) {
		return nil, errors.New("the input does not fit")
	}
	size, err := in.ExportedFunction("do").Call(ctx, uint64(len(b)))
	if err != nil {
		return nil, err
	}
	out, _ := in.Memory().Read(uint32(at[0]), uint32(size[0]))
	return bytes.Clone(out), nil
}

// functions measures calls of the same function, in processes or instances that serve many calls
// and in fresh ones.
func functions(dir string, rounds int) (tables []table, err error) {
	ctx := context.Background()
	client, end, err := startPlain()
	if err != nil {
		return nil, err
	}
	defer end()
	m, err := newModule(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer m.runtime.Close(ctx)
	warm, err := m.instance(ctx)
	if err != nil {
		return nil, err
	}
	workers, started := isolated.Workers(1), isolated.Workers(2, function.MaxCalls(1))
	defer workers.Close()
	defer started.Close()
	for _, size := range []int{1 << 10, 1 << 20} {
		in := bytes.Repeat([]byte("abcd"), size/4)
		want := work.Do(in)
		sub := func(name string, call func() ([]byte, error), ready func() error) subject {
			return subject{name: name, ready: ready, run: func() error {
				out, err := call()
				if err == nil && !bytes.Equal(out, want) {
					err = errors.New(name + ": another result")
				}
				return err
			}}
		}
		title := fmt.Sprintf("%d KiB to a function", size>>10)
		tables = append(tables, latencies(title+": many calls in one process", []subject{
			sub("called", func() ([]byte, error) { return work.Do(in), nil }, nil),
			sub("net/rpc to a plain process", func() (out []byte, err error) { err = client.Call("Plain.Do", in, &out); return out, err }, nil),
			sub(own, func() ([]byte, error) { return workers.Call(ctx, in) }, nil),
			sub("wazero", func() ([]byte, error) { return do(ctx, warm, in) }, nil),
		}, rounds*5, 0), latencies(title+": a fresh process for each", []subject{
			sub("a plain process", func() ([]byte, error) {
				cmd := exec.Command("/proc/self/exe", plainOnce)
				cmd.Stdin = bytes.NewReader(in)
				return cmd.Output()
			}, nil),
			sub(own, func() ([]byte, error) { return isolated.Call(ctx, in) }, nil),
			sub(own+", started ahead", func() ([]byte, error) { return started.Call(ctx, in) }, func() error { time.Sleep(40 * time.Millisecond); return nil }),
			sub("wazero", func() ([]byte, error) {
				instance, err := m.instance(ctx)
				if err != nil {
					return nil, err
				}
				defer instance.Close(ctx)
				return do(ctx, instance, in)
			}, nil),
		}, rounds, 0))
	}
	return tables, nil
}
