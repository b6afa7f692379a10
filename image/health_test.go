//go:build linux

package image

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
)

func TestPorts(t *testing.T) {
	ports := func(exposed ...string) []int {
		c := v1.Config{ExposedPorts: map[string]struct{}{}}
		for _, e := range exposed {
			c.ExposedPorts[e] = struct{}{}
		}
		return (&Image{config: c}).Ports()
	}
	require.Equal(t, []int{80, 443, 65535}, ports("443/tcp", "80", "80/tcp", "65535/tcp", "53/udp", "0/tcp", "65536/tcp", "-1/tcp", "x/tcp", "8000-8010/tcp", "", "/tcp"))
	require.Empty(t, ports())
}

// A configuration's check is what container engines execute, or none; what no run can have is
// refused with the image.
func TestHealthcheck(t *testing.T) {
	for _, test := range []struct {
		test, shell, want []string
	}{
		{nil, nil, nil},
		{[]string{"NONE"}, nil, nil},
		{[]string{"NONE", "x"}, nil, nil},
		{[]string{"CMD"}, nil, nil},
		{[]string{"CMD", "a", "b c"}, []string{"/no"}, []string{"a", "b c"}},
		{[]string{"CMD-SHELL", "a || b", "c"}, nil, []string{"/bin/sh", "-c", "a || b"}},
		{[]string{"CMD-SHELL", "a"}, []string{"/bin/bash", "-o", "pipefail", "-c"}, []string{"/bin/bash", "-o", "pipefail", "-c", "a"}},
	} {
		i := &Image{config: v1.Config{Shell: test.shell, Healthcheck: &v1.HealthConfig{Test: test.test, Interval: time.Second, Timeout: 2, StartPeriod: 3, Retries: 4}}}
		if test.want == nil {
			require.Nil(t, i.Healthcheck(), "%q", test.test)
			continue
		}
		require.Equal(t, &Healthcheck{Command: test.want, Interval: time.Second, Timeout: 2, StartPeriod: 3, Retries: 4}, i.Healthcheck())
	}
	require.Nil(t, (&Image{}).Healthcheck())
	for want, c := range map[string]v1.Config{
		"config field Healthcheck: \"a\\x00\" contains a zero byte": {Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "a\x00"}}},
		"config field Healthcheck: \"xxx":                           {Healthcheck: &v1.HealthConfig{Test: []string{"CMD", strings.Repeat("x", 1<<20)}}},
		"config field Shell: \"xxx":                                 {Shell: []string{strings.Repeat("x", 1<<20)}},
	} {
		require.ErrorContains(t, checkConfig(&v1.ConfigFile{Config: c}), want)
	}
}
