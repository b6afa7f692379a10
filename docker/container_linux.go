package docker

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/handover"
	"github.com/cellkit/sandbox/internal/wall"
)

// Run implements handover.Daemon.
func (d *daemon) Run(c *wall.Container, name, dir string) (<-chan struct{}, error) {
	if err := d.create(c, name, dir); err != nil {
		return nil, fmt.Errorf("making the container: %w", err)
	}
	gone, err := d.start(name)
	if err != nil {
		return nil, fmt.Errorf("starting the container: %w", err)
	}
	return gone, nil
}

// create makes the container, of an image of its own.
func (d *daemon) create(c *wall.Container, name, dir string) error {
	ctx, cancel := within()
	defer cancel()
	own, err := handover.OwnPath()
	if err != nil {
		return err
	}
	root, w := io.Pipe()
	defer root.Close()
	go func() { w.CloseWithError(writeRoot(w, own == "")) }()
	answer, err := d.api.ImageImport(ctx, client.ImageImportSource{Source: root, SourceName: "-"}, name, client.ImageImportOptions{})
	if err != nil {
		return err
	}
	// It is there at the end of the answer.
	_, err = io.Copy(io.Discard, io.LimitReader(answer, 1<<20))
	if err = errors.Join(err, answer.Close()); err != nil {
		return err
	}
	_, err = d.api.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name, Config: config(c, name), HostConfig: hostConfig(c, dir, own)})
	return err
}

// writeRoot writes an archive of a root with nothing but places for what the cell is to have, and,
// with own, this program's own file.
func writeRoot(to io.Writer, own bool) error {
	w := tar.NewWriter(to)
	for _, dir := range []string{"cell/", "dev/", "proc/", "run/", "sys/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if own {
		f, err := os.Open(handover.OwnFile)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: handover.Program[1:], Mode: 0o755, Size: info.Size()}); err != nil {
			return err
		}
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
	}
	return w.Close()
}

func config(c *wall.Container, name string) *container.Config {
	return &container.Config{
		Image:      name,
		Entrypoint: []string{handover.Program, handover.Name},
		// c.Env has the search path of its libraries.
		Env:        append(slices.Clone(c.Env), handover.Env),
		Hostname:   "cell",
		User:       "0:0",
		WorkingDir: "/",
	}
}

// openFiles has PID 1 open as many files as this process may. A daemon's default may be less, and
// no run could raise it again.
func openFiles() []*container.Ulimit {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max > math.MaxInt64 {
		return nil
	}
	return []*container.Ulimit{{Name: "nofile", Soft: int64(l.Max), Hard: int64(l.Max)}}
}

// hostConfig describes a container whose only process has two capabilities and no filter, for as
// long as it takes to start PID 1. Nothing covers its /proc: the kernel lets the cell mount its own
// only where a fully visible one exists.
func hostConfig(c *wall.Container, dir, own string) *container.HostConfig {
	noInit := false
	h := &container.HostConfig{
		AutoRemove:     true,
		ReadonlyRootfs: true,
		NetworkMode:    "none",
		IpcMode:        "none",
		UsernsMode:     "host", // whatever the daemon's userns-remap is
		// Runs are cloned into cgroups that are not below the container's.
		CgroupnsMode:  "host",
		CapDrop:       []string{"ALL"},
		CapAdd:        handover.Capabilities,
		SecurityOpt:   []string{"seccomp=unconfined", "apparmor=unconfined", "label=disable"},
		MaskedPaths:   []string{},
		ReadonlyPaths: []string{},
		LogConfig:     container.LogConfig{Type: "none"},
		Init:          &noInit,
		Mounts:        []mount.Mount{bind(dir, handover.Dir)},
		Resources:     container.Resources{Ulimits: openFiles()},
	}
	if own != "" {
		h.Mounts = append(h.Mounts, bind(own, handover.Program))
	}
	if c.HostNetwork {
		h.NetworkMode = "host"
	}
	for _, b := range c.Binds {
		h.Mounts = append(h.Mounts, bind(b.Source, b.Destination))
	}
	return h
}

func bind(source, target string) mount.Mount {
	return mount.Mount{Type: mount.TypeBind, Source: source, Target: target, ReadOnly: true}
}

// start starts the container, and closes the channel when the daemon has removed it.
func (d *daemon) start(name string) (<-chan struct{}, error) {
	wait := d.api.ContainerWait(context.Background(), name, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
	gone := make(chan struct{})
	go func() { // also if it does not start: it is removed then
		select {
		case <-wait.Result:
		// The daemon has ended, and its containers end with it, or are nobody's.
		case <-wait.Error:
		}
		close(gone)
	}()
	ctx, cancel := within()
	defer cancel()
	_, err := d.api.ContainerStart(ctx, name, client.ContainerStartOptions{})
	return gone, err
}

// Signal implements handover.Daemon.
func (d *daemon) Signal(name string, sig syscall.Signal) error {
	ctx, cancel := within()
	defer cancel()
	_, err := d.api.ContainerKill(ctx, name, client.ContainerKillOptions{Signal: strconv.Itoa(int(sig))})
	return ignoreMissing(err)
}
