package docker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/cellkit/sandbox/internal/wall"
)

const name = "docker" // as CellRuntime has it

func init() { wall.Register(name, wall.Module{Open: open, Clean: clean}) }

// daemon is the Wall of a daemon that answers.
type daemon struct {
	api     *client.Client
	version string
}

// patience is far more than any request takes that a container's life does not prolong.
const patience = time.Minute

func within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// open asks the daemon for its version.
func open() (wall.Runtime, error) {
	d, err := ask()
	if err != nil {
		return nil, err
	}
	return d, nil
}

func ask() (*daemon, error) {
	// A connection for each request: nothing is open between them.
	once := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	api, err := client.New(client.WithHTTPClient(once), client.WithHost(client.DefaultDockerHost), client.FromEnv, client.WithScheme("http"))
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	if host := api.DaemonHost(); !strings.HasPrefix(host, "unix://") {
		return nil, fmt.Errorf("DOCKER_HOST is %s: the cells of this process can only be on this machine, so it has to be a socket, as in unix:///var/run/docker.sock", host)
	}
	ctx, cancel := within()
	defer cancel()
	v, err := api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, &wall.MissingError{Runtime: name, Debian: "docker.io", Daemon: true, Err: err}
	}
	return &daemon{api: api, version: v.Version}, nil
}

// Name implements wall.Wall.
func (*daemon) Name() string { return name }

// OneExtent implements wall.Runtime. Docker maps no ids here: the cell's own user namespace is in
// its container.
func (*daemon) OneExtent() bool { return false }

// NeedsRoot implements wall.Runtime.
func (*daemon) NeedsRoot() string { return name + " makes cells of root alone" }

// Version implements wall.Runtime.
func (d *daemon) Version() (string, error) { return "Docker Engine " + d.version, nil }

// Explain implements wall.Wall. The daemon's texts are for people.
func (*daemon) Explain(error) (wall.Why, bool) { return wall.Other, false }

// prefix begins the names of containers and their images.
const prefix = "sandbox-cell-"

// clean removes what a process that was killed has left with the daemon.
func clean(id, _ string) error {
	d, err := ask()
	if err != nil {
		return err
	}
	return d.remove(prefix + id)
}

// remove removes a container and its image, whatever is there of them, and waits until they are
// gone.
func (d *daemon) remove(name string) error {
	ctx, cancel := within()
	defer cancel()
	// The image first: after that no container can be made of it any more.
	_, imageErr := d.api.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true})
	for {
		_, err := d.api.ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: true})
		switch {
		case errdefs.IsNotFound(err):
			if errdefs.IsConflict(imageErr) { // the container had it
				_, imageErr = d.api.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true})
			}
			if errdefs.IsNotFound(imageErr) {
				imageErr = nil
			}
			return imageErr
		case err != nil && !errdefs.IsConflict(err):
			return errors.Join(err, ignoreMissing(imageErr))
		}
		// It was removed, or the daemon is about to: the next answer says whether it is.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
