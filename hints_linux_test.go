package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNoUserNamespacesDetected has what distributions switch user namespaces off with.
func TestNoUserNamespacesDetected(t *testing.T) {
	const most, apparmor, clone = "user/max_user_namespaces", "kernel/apparmor_restrict_unprivileged_userns", "kernel/unprivileged_userns_clone"
	tests := []struct {
		sysctls      map[string]string
		user, asRoot string // what the remedies begin with
	}{
		{nil, "", ""},
		{map[string]string{most: "63000", apparmor: "0", clone: "1"}, "", ""},
		{map[string]string{most: "0"}, "sysctl user.max_user_namespaces=65536, or run this program as root and use WithoutUserNamespace",
			"sysctl user.max_user_namespaces=65536, or WithoutUserNamespace"},
		{map[string]string{most: "63000", apparmor: "1"}, "sysctl kernel.apparmor_restrict_unprivileged_userns=0", ""},
		{map[string]string{most: "63000", clone: "0"}, "sysctl kernel.unprivileged_userns_clone=1", ""},
	}
	for _, test := range tests {
		dir := t.TempDir()
		for name, value := range test.sysctls {
			path := filepath.Join(dir, name)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, []byte(value+"\n"), 0o644))
		}
		for root, want := range map[bool]string{false: test.user, true: test.asRoot} {
			remedy, sure, why := noUserNamespaces(dir, root)
			require.Equal(t, want == "", why == nil, test)
			require.Equal(t, want, remedy[:min(len(want), len(remedy))], test)
			require.Equal(t, want == "", remedy == "")
			require.Equal(t, test.sysctls[apparmor] != "1" || root, sure, "profiles make exceptions")
		}
	}
}

func TestObstacleHint(t *testing.T) {
	t.Parallel()
	require.Equal(t, "this container has a /proc of which parts are covered: docker run --security-opt systempaths=unconfined, "+
		"or in a Kubernetes securityContext procMount: Unmasked (docs/CONTAINERS.md)", obstacleHint(false, false, true))
	require.Contains(t, obstacleHint(true, true, true), "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined, ")
	require.Contains(t, obstacleHint(false, true, false), "an AppArmor profile: docker run --security-opt apparmor=unconfined, or in a Kubernetes securityContext appArmorProfile: {type: Unconfined} ")
	require.Contains(t, obstacleHint(false, false, false), "--privileged")
}
