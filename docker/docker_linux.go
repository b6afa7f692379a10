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

	"github.com/cellkit/sandbox/internal/handover"
	"github.com/cellkit/sandbox/internal/wall"
)

const name = "docker" // as CellRuntime has it

func init() { handover.Register(name, func() (handover.Daemon, error) { return open() }) }

// daemon is a daemon that answers.
type daemon struct {
	api     *client.Client
	version string
}

func within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), handover.Patience)
}

// open asks the daemon for its version.
func open() (*daemon, error) {
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

// Name implements handover.Daemon.
func (*daemon) Name() string { return name }

// Version implements handover.Daemon.
func (d *daemon) Version() (string, error) { return "Docker Engine " + d.version, nil }

// Remove implements handover.Daemon: for a container and its image.
func (d *daemon) Remove(name string) error {
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
