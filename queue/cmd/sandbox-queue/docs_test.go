//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/queue"
)

// docs returns a page of the documentation after a mark, up to another.
func docs(t *testing.T, page, from, to string) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/" + page)
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), from)
	require.True(t, ok, "%s has no %q", page, from)
	part, _, ok := strings.Cut(rest, to)
	require.True(t, ok, "%s has no %q after it", page, to)
	return part
}

// pod is what a pod has of what cells need, and the worker's command.
type pod struct {
	HostUsers             *bool `yaml:"hostUsers"`
	ShareProcessNamespace bool  `yaml:"shareProcessNamespace"`
	Containers            []struct {
		Command, Args   []string
		Env             []struct{ Name, Value string }
		SecurityContext map[string]any `yaml:"securityContext"`
	}
}

// The manifests of docs/QUEUE.md can be read, have what cells need, and start workers.
func TestManifests(t *testing.T) {
	var deployment struct {
		Kind string
		Spec struct{ Template struct{ Spec pod } }
	}
	require.NoError(t, yaml.Unmarshal([]byte(docs(t, "QUEUE.md", "```yaml\n", "```")), &deployment))
	require.Equal(t, "Deployment", deployment.Kind)
	workers := deployment.Spec.Template.Spec
	var needs struct{ Spec pod }
	require.NoError(t, yaml.Unmarshal([]byte(docs(t, "CONTAINERS.md", "in a pod's terms:\n", "The pod security")), &needs))
	require.Equal(t, needs.Spec.Containers[0].SecurityContext, workers.Containers[0].SecurityContext)
	require.Equal(t, needs.Spec.HostUsers, workers.HostUsers)
	require.NotNil(t, workers.HostUsers)
	require.True(t, workers.ShareProcessNamespace, "the worker would be PID 1")

	var job struct {
		Job struct {
			TaskGroups []struct {
				Tasks []struct {
					Driver string
					Config struct {
						Command string
						Args    []string
					}
					Env map[string]string
				}
			}
		}
	}
	d := json.NewDecoder(strings.NewReader(docs(t, "QUEUE.md", "```json\n", "```")))
	require.NoError(t, d.Decode(&job))
	task := job.Job.TaskGroups[0].Tasks[0]
	require.Equal(t, "raw_exec", task.Driver)
	require.Equal(t, []string{"sandbox-queue"}, workers.Containers[0].Command)
	require.Equal(t, "/usr/local/bin/sandbox-queue", task.Config.Command)
	_, unit, ok := strings.Cut(docs(t, "QUEUE.md", "```ini\n", "```"), "ExecStart=/usr/local/bin/sandbox-queue ")
	require.True(t, ok)
	unit, _, _ = strings.Cut(unit, "\n")
	env := map[string]string{}
	for _, e := range workers.Containers[0].Env {
		env[e.Name] = e.Value
	}
	for _, names := range []map[string]string{env, task.Env} {
		for _, name := range []string{"SANDBOX_QUEUE_URL", "SANDBOX_QUEUE_NKEY", "SANDBOX_QUEUE_CA"} {
			require.NotEmpty(t, names[name], name)
		}
	}

	q, err := queue.Open(testkit.Deadline(t), "", queue.Dir(t.TempDir()), queue.Listen("127.0.0.1:0"))
	require.NoError(t, err)
	defer q.Close()
	t.Setenv("SANDBOX_QUEUE_URL", q.URL())
	ctx, stop := context.WithCancel(testkit.Deadline(t))
	ended := make(chan int, 3)
	for _, args := range [][]string{workers.Containers[0].Args, task.Config.Args, strings.Fields(unit)} {
		go func() { ended <- run(ctx, args, nil, os.Stdout, os.Stderr) }()
	}
	testkit.Eventually(t, "all work", func() bool {
		time.Sleep(20 * time.Millisecond)
		require.Empty(t, ended, "one has ended")
		var out bytes.Buffer
		require.Zero(t, run(ctx, []string{"workers", "-json"}, nil, &out, os.Stderr))
		return strings.Count(out.String(), `"slots":4`) == 3 && strings.Count(out.String(), `"classes":["linux","debian-12"],"slots":4`) == 2 && strings.Count(out.String(), `"memory":4294967296`) == 1
	})
	stop()
	for range cap(ended) {
		require.Zero(t, <-ended)
	}
}
