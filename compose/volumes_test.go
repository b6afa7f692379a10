//go:build linux

package compose

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// said returns what the services of a project that ends well wrote, a line for each.
func said(t *testing.T, r *Running) map[string]string {
	t.Helper()
	require.NoError(t, r.Err())
	all := map[string]string{}
	for line := range r.Follow(context.Background()) {
		all[line.Name()] = strings.TrimSpace(all[line.Name()] + " " + line.Text)
	}
	return all
}

// A named volume begins with what the image of the first service has at its place, in the order of
// dependencies, with modes; for root with owners, for others all is the user's. What is in it
// stays.
func TestRootlessVolumesBegin(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	const file = `
x-app: &app
  image: ./busybox.tar
  user: app
services:
  z-first:
    <<: *app
    command: [sh, -c, "cd /var/lib/app; busybox stat -c '%n=%a,%u' . seed conf; cat seed conf; echo changed >seed; rm -f conf"]
    volumes: ['vol:/var/lib/app']
  a-second:
    <<: *app
    command: [sh, -c, "cd /etc; busybox stat -c '%n=%a,%u' . *; cat seed"]
    volumes: ['vol:/etc:ro']
    depends_on: {z-first: {condition: service_completed_successfully}}
  again:
    <<: *app
    command: [sh, -c, "cd /var/lib/app; echo $$(ls); rm conf 2>/dev/null && exit 1; exit 0"]
    restart: on-failure:1
    volumes: ['again:/var/lib/app']
  root:
    image: ./busybox.tar
    command: [sh, -c, "cd /var/lib/app; busybox stat -c '%n=%a,%u' . seed conf"]
    volumes: ['root:/var/lib/app']
  own:
    <<: *app
    command: [sh, -c, "cd /var/lib/app; echo $$(ls); echo $$HOSTNAME >seed"]
    volumes: ['/var/lib/app']
    scale: 2
  missing:
    <<: *app
    command: [sh, -c, "ls -A /var/lib/app /missing /srv"]
    volumes:
    - {type: volume, target: /missing}
    - {type: volume, source: empty, target: /var/lib/app, volume: {nocopy: true}}
    - {type: volume, target: /srv, volume: {nocopy: true}}
volumes: {vol: , again: , empty: , root: }
`
	for name, opts := range map[string][]Option{"memory": nil, "directory": {VolumeDir(testkit.OpenDir(t))}, "disk": {VolumeDisk("/var/tmp", 4<<20)}} {
		t.Run(name, func(t *testing.T) {
			content := map[string]string{"compose.yaml": file}
			switch name {
			case "disk":
				testkit.Need(t, "disks for file systems")
			case "directory": // read-only, an ordinary user's may be nobody's
				content["compose.yaml"] = strings.ReplaceAll(file, ":ro'", "'")
			}
			all := said(t, up(t, project(t, content, opts...)))
			require.Equal(t, ".=1770,1001 seed=600,1001 conf=444,1001 seed conf", all["z-first"])
			require.Regexp(t, `^.=1770,1001 (host\S+ |resolv\S+ )*seed=600,1001 changed$`, all["a-second"])
			owners := ".=1770,0 seed=600,0 conf=444,0"
			if testkit.AsRoot() && name != "directory" { // which has one owner
				owners = ".=1770,1001 seed=600,1001 conf=444,0"
			}
			require.Equal(t, owners, all["root"])
			require.Equal(t, "conf seed seed", all["again"])
			require.Equal(t, "conf seed", all["own.1"])
			require.Equal(t, "conf seed", all["own.2"])
			require.Equal(t, "/missing: /srv: /var/lib/app:", strings.Join(strings.Fields(all["missing"]), " "))
		})
	}
}

// What does not fit is an error that names the volume and what to do, and nothing of it is left.
func TestRootlessVolumesRoom(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	const file = "services:\n  one: {image: ./busybox.tar, command: 'true', volumes: ['vol:/bin']}\nvolumes: {vol: }\n"
	r := up(t, project(t, map[string]string{"compose.yaml": file}, VolumeMemory(8<<10)))
	err := r.Err()
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "service one: volume vol: sandbox: Fill: what the image has at /bin can't be copied: write busybox: no space left on device")
	require.ErrorContains(t, err, "make volumes larger (VolumeMemory, VolumeDisk), or say nocopy of it")

	own := strings.Replace(file, "vol:/bin", "/bin", 1)
	r = up(t, project(t, map[string]string{"compose.yaml": own}, VolumeMemory(8<<10)))
	require.ErrorContains(t, r.Err(), "give service.Volume more bytes, or service.NoCopy")
}

// Of projects that have one directory and start at once, one fills it; the others wait. One that
// has files stays as it is, and one that was not filled to the end is an error.
func TestRootlessVolumeDirs(t *testing.T) {
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	dir := testkit.OpenDir(t)
	p := project(t, map[string]string{"compose.yaml": `
services:
  one: {image: ./busybox.tar, user: app, command: [sh, -c, "cd /var/lib/app; cat seed conf && mkdir $$$$-$$RANDOM"], volumes: ['vol:/var/lib/app', 'bin:/bin']}
volumes: {vol: , bin: }
`}, VolumeDir(dir))
	var all sync.WaitGroup
	for range 4 {
		r := up(t, p)
		all.Go(func() { _ = r.Err() })
		t.Cleanup(func() { require.Equal(t, map[string]string{"one": "seed conf"}, said(t, r)) })
	}
	all.Wait()
	list, err := filepath.Glob(dir + "/*")
	require.NoError(t, err)
	require.Equal(t, []string{dir + "/bin", dir + "/vol"}, list)
	info, err := os.Stat(dir + "/vol")
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|os.ModeSticky|0o770, info.Mode())
	require.EqualValues(t, os.Geteuid(), info.Sys().(*syscall.Stat_t).Uid)
	require.NoError(t, os.Remove(dir+"/vol/conf"))
	require.NoError(t, os.Remove(dir+"/vol/seed"))
	r := up(t, p)
	require.ErrorContains(t, r.Err(), "can't open 'seed'")

	testkit.WriteFile(t, dir+"/vol~", "x", 0o600)
	err = up(t, p).Err()
	require.ErrorContains(t, err, fmt.Sprintf("service one: volume vol: what the image has at /var/lib/app can't be copied to %s/vol: a process that did this was killed: look at what the directory has, and remove both it and %[1]s/vol~", dir))
	require.NoError(t, os.RemoveAll(dir+"/vol"))
	require.Equal(t, map[string]string{"one": "seed conf"}, said(t, up(t, p)))
	require.NoFileExists(t, dir+"/vol~")
}
