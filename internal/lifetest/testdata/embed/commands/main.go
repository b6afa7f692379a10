// Command commands runs the command that its first argument names. Some of the names have a meaning
// for the library too, in processes that it starts itself.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"github.com/cellkit/sandbox"

	"example.com/embed/middle"
	_ "example.com/embed/noisy"
)

func main() {
	command := commands[os.Args[1]]
	err := errors.New("unknown command")
	if command != nil {
		err = command()
	}
	if err != nil {
		fmt.Println(os.Args[1]+":", err)
		os.Exit(1)
	}
	fmt.Println(os.Args[1] + ": done")
}

var commands = map[string]func() error{
	"init":               echo,
	"sandbox-forkserver": echo,
	"wait":               wait,
	"closed":             closed,
	"heap":               heap,
	"busy":               busy,
	"umask":              umask,
	"thread":             thread,
	"twice":              twice,
	"cwd":                cwd,
}

func echo() error {
	out, err := sandbox.New(sandbox.WithCommand("echo", "hi")).Output(context.Background())
	if err == nil && string(out) != "hi\n" {
		err = fmt.Errorf("output %q", out)
	}
	if err == nil {
		err = middle.Check()
	}
	return err
}

// wait continues only when it is told to.
func wait() error {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	return echo()
}

// closed has its pipes and sockets at the numbers of the standard streams. It keeps the standard
// output for its last message.
func closed() error {
	out, err := syscall.Dup(1)
	if err != nil {
		return err
	}
	for fd := range 3 {
		syscall.Close(fd)
	}
	err = echo()
	if err == nil {
		err = sandbox.Shutdown(context.Background())
	}
	return errors.Join(err, syscall.Dup3(out, 1, 0))
}

func heap() error {
	big := make([]byte, 1<<30)
	for i := 0; i < len(big); i += 4096 {
		big[i] = 1
	}
	err := echo()
	runtime.KeepAlive(big)
	return err
}

// busy starts other processes at the same time.
func busy() error {
	var all sync.WaitGroup
	errs := make(chan error, 8)
	for range 4 {
		all.Go(func() {
			for range 25 {
				if err := echo(); err != nil {
					errs <- err
					return
				}
			}
		})
		all.Go(func() {
			for range 100 {
				if out, err := exec.Command("echo", "ho").Output(); err != nil || string(out) != "ho\n" {
					errs <- fmt.Errorf("os/exec: %q, %w", out, err)
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs
}

func umask() error {
	syscall.Umask(0o777)
	return echo()
}

// thread ends the thread that boots the cell.
func thread() error {
	cells, errs := make(chan *sandbox.Cell), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it
		c, err := sandbox.NewCell()
		errs <- err
		cells <- c
	}()
	if err := <-errs; err != nil {
		return err
	}
	c := <-cells
	for range 20 {
		if _, err := sandbox.New(sandbox.WithCell(c), sandbox.WithCommand("true")).Run(context.Background()); err != nil {
			return err
		}
	}
	return c.Close()
}

func twice() error {
	for range 2 {
		if err := errors.Join(echo(), sandbox.Shutdown(context.Background())); err != nil {
			return err
		}
	}
	return nil
}

// cwd runs in a directory that no longer exists.
func cwd() error {
	dir, err := os.MkdirTemp("", "embed")
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chdir(dir), os.Remove(dir)); err != nil {
		return err
	}
	return echo()
}
