package docker

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/handover"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/walltest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// needDaemon skips the test where no daemon answers.
func needDaemon(t *testing.T) (*daemon, walltest.Daemon) {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "Docker's daemon")
	d, err := open()
	require.NoError(t, err)
	return d, walltest.Daemon{Runtime: name, Containers: d.containers, Left: func(t testing.TB, id string) []string {
		return append(d.containers(t, id), d.images(t, id)...)
	}}
}

// containers returns the names of those that this package has made for the cell.
func (d *daemon) containers(t testing.TB, id string) (names []string) {
	t.Helper()
	list, err := d.api.ContainerList(testkit.Deadline(t), client.ContainerListOptions{All: true})
	require.NoError(t, err)
	for _, c := range list.Items {
		names = append(names, c.Names...)
	}
	return ofCell(names, id)
}

// images does the same.
func (d *daemon) images(t testing.TB, id string) (names []string) {
	t.Helper()
	list, err := d.api.ImageList(testkit.Deadline(t), client.ImageListOptions{All: true})
	require.NoError(t, err)
	for _, i := range list.Items {
		names = append(names, i.RepoTags...)
	}
	return ofCell(names, id)
}

func ofCell(names []string, id string) (its []string) {
	for _, name := range names {
		if strings.Contains(name, handover.Prefix+id) {
			its = append(its, name)
		}
	}
	return its
}

func TestRun(t *testing.T) {
	_, tests := needDaemon(t)
	tests.Run(t)
}

func TestAttackBreakOut(t *testing.T) {
	_, tests := needDaemon(t)
	tests.BreakOut(t)
}

func TestKilledHost(t *testing.T) {
	_, tests := needDaemon(t)
	tests.KilledHost(t)
}

func TestKilledBoot(t *testing.T) {
	d, tests := needDaemon(t)
	tests.KilledBoot(t,
		func(string) bool { return true },
		func(id string) bool { return len(d.images(t, id)) > 0 },
		func(id string) bool { return len(d.containers(t, id)) > 0 })
}

// Who names Docker where it does not answer gets to know what to do.
func TestNoDaemon(t *testing.T) {
	testkit.Need(t, "root")
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "none"))
	_, err := sandbox.NewCell(sandbox.CellRuntime("docker"))
	require.ErrorContains(t, err, "docker's daemon does not answer")
	require.ErrorContains(t, err, "apt-get install docker.io")
	said, err := testkit.HelperCommand(context.Background(), walltest.Helper, "docker", testkit.ALongTime()).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(said), "docker's daemon does not answer")
	t.Setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
	_, err = sandbox.NewCell(sandbox.CellRuntime("docker"))
	require.ErrorContains(t, err, "DOCKER_HOST is tcp://127.0.0.1:1")
}
