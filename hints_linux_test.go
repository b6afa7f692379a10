package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestObstacleHint(t *testing.T) {
	t.Parallel()
	require.Equal(t, "this container has a /proc of which parts are covered: docker run --security-opt systempaths=unconfined, "+
		"or in a Kubernetes securityContext procMount: Unmasked (docs/CONTAINERS.md)", obstacleHint(false, false, true))
	require.Contains(t, obstacleHint(true, true, true), "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined, ")
	require.Contains(t, obstacleHint(false, true, false), "an AppArmor profile: docker run --security-opt apparmor=unconfined, or in a Kubernetes securityContext appArmorProfile: {type: Unconfined} ")
	require.Contains(t, obstacleHint(false, false, false), "--privileged")
}
