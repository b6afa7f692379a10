//go:build linux

package service_test

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/service"
)

var files = sandbox.New(sandbox.WithCommand("python3", "-m", "http.server", "80", "-d", "/data"), sandbox.WithFile("/data/greeting", []byte("hello"), 0o644))

// A web server, which is used as soon as it is ready, restarted if it fails, and checked meanwhile.
func ExampleNew() {
	web := service.New("web", files, service.Port(80), service.Ready(service.Listens(80), service.HTTP(80, "/greeting")),
		service.Restart(5), service.Health(10*time.Second, 3, service.HTTP(80, "/greeting")))
	running, err := web.Start(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	answer, err := http.Get("http://" + running.Addr(80) + "/greeting")
	if err == nil {
		fmt.Println(answer.Status)
		answer.Body.Close()
	}
	fmt.Println(running.Close())
	// Output:
	// 200 OK
	// <nil>
}

// A server, and what needs it: they start in this order, find each other by name, and end in the
// other order.
func ExampleStartAll() {
	get := sandbox.New(sandbox.WithCommand("python3", "-c", `import urllib.request; print(urllib.request.urlopen("http://web/greeting").read().decode())`))
	group, err := service.StartAll(context.Background(),
		service.New("web", files, service.Port(80)),
		service.New("job", get, service.After("web"), service.Ready(service.Exits())))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, line := range group.Service("job").Logs() {
		fmt.Println(line)
	}
	fmt.Println(group.Close())
	// Output:
	// hello
	// <nil>
}

// Each instance of the service has a copy of what was made once.
func ExampleNewSnapshot() {
	data := service.NewSnapshot("/data", sandbox.MiB, sandbox.New(sandbox.WithCommand("sh", "-c", "echo made once >/data/file")))
	defer data.Close()
	s := service.New("x", sandbox.New(sandbox.WithCommand("sh", "-c", "cat /data/file; echo changed >/data/file")), service.From(data), service.Ready(service.Exits()))
	for range 2 {
		i, err := s.Start(context.Background())
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(i.Logs()[0])
		_ = i.Close()
	}
	// Output:
	// made once
	// made once
}
