package cli

import (
	"flag"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestParseSize(t *testing.T) {
	for value, want := range map[string]int64{
		"0":                    0,
		"1":                    1,
		"65536":                65536,
		"500k":                 500 * sandbox.KiB,
		"64m":                  64 * sandbox.MiB,
		"64M":                  64 * sandbox.MiB,
		"2g":                   2 * sandbox.GiB,
		"9223372036854775807":  math.MaxInt64,
		"8589934591g":          8589934591 * sandbox.GiB,
		"":                     -1,
		"m":                    -1,
		"-1":                   -1,
		"+1":                   -1,
		"1.5g":                 -1,
		"64mb":                 -1,
		"64 m":                 -1,
		"0x10":                 -1,
		"9223372036854775808":  -1,
		"8589934592g":          -1,
		"99999999999999999999": -1,
	} {
		got, err := ParseSize(value)
		if want < 0 {
			assert.Error(t, err, value)
			continue
		}
		assert.NoError(t, err, value)
		assert.Equal(t, want, got, value)
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0:                           "0 bytes",
		1023:                        "1023 bytes",
		sandbox.KiB:                 "1 KiB",
		64 * sandbox.MiB:            "64 MiB",
		sandbox.MiB + sandbox.MiB/2: "1.5 MiB",
		3 * sandbox.GiB:             "3 GiB",
	} {
		assert.Equal(t, want, formatSize(n))
	}
}

func TestParseKeepsWhatReasonsTell(t *testing.T) {
	s, err := parse([]string{"-memory", "64m", "--timeout=2s", "-cpu-time", "1s", "-output-limit", "1k", "-usage", "-explain", "--", "true", "-usage=false"})
	require.NoError(t, err)
	s.opts, s.command, s.given = nil, nil, nil
	assert.Equal(t, &settings{explain: true, usage: true, memory: 64 << 20, output: 1024, timeout: 2 * time.Second, cpuTime: time.Second}, s)

	s, err = parse([]string{"-memory", "64m", "-memory", "32m", "-usage=false", "true"})
	require.NoError(t, err)
	assert.EqualValues(t, 32<<20, s.memory, "the last one counts")
	assert.False(t, s.usage)
}

func TestParseHelp(t *testing.T) {
	for _, args := range [][]string{{"-h"}, {"--help"}, {"-memory", "64m", "-help", "true"}} {
		_, err := parse(args)
		assert.ErrorIs(t, err, flag.ErrHelp)
	}
	for _, group := range flagGroups {
		for _, f := range group.flags {
			assert.Contains(t, runUsage(), "\n  -"+f.name+" ")
		}
	}
}

// Each wrong value is refused with an error that begins with the flag and repeats the value.
func TestParseWrongValues(t *testing.T) {
	for _, c := range []struct{ name, value, remedy string }{
		{"memory", "64x", "is not a size such as 500k, 64m or 2g"},
		{"swap", "-1", "is not a size"},
		{"output-limit", "many", "is not a size"},
		{"writable-root", "yes", "is not a size"},
		{"cpus", "half", "is not a number such as 0.5 or 2"},
		{"cpu-weight", "-1", "is not a number from 1 to 10000"},
		{"pids", "few", "is not a number of processes"},
		{"cpu-time", "1", "is not a duration such as 500ms, 2s or 1m30s"},
		{"timeout", "2", "is not a duration"},
		{"wait-delay", "2", "is not a duration"},
		{"groups", "10,wheel", "is not a list of group ids in numbers"},
		{"rlimit", "nofile", "is not NAME=SOFT[:HARD]"},
		{"rlimit", "nofile=x", "is not NAME=SOFT[:HARD]"},
		{"rlimit", "nofile=1:", "is not NAME=SOFT[:HARD]"},
		{"bind", "/src:", "it must be SRC or SRC:DST"},
		{"tmpfs", "/scratch", "is not DST:SIZE, such as /scratch:64m"},
		{"tmpfs", "/scratch:big", `"big" is not a size`},
		{"file", "/dst", "is not DST=SRC"},
		{"file", "/dst=", "is not DST=SRC"},
		{"user", "root", "is not UID or UID:GID in numbers"},
		{"user", "1:", "is not UID or UID:GID in numbers"},
		{"net", "bridge", "is neither none nor new nor host"},
		{"env", "", "is not NAME or NAME=VALUE"},
		{"dir", "", "is empty"},
		{"hostname", "", "is empty"},
		{"cgroup-parent", "", "is empty"},
		{"usage", "perhaps", "is neither true nor false"},
		{"no-seccomp", "perhaps", "is neither true nor false"},
	} {
		_, err := parse([]string{"-" + c.name + "=" + c.value, "true"})
		if assert.Error(t, err, c.name) {
			assert.Regexp(t, "^-"+c.name+`: "`, err.Error())
			assert.Contains(t, err.Error(), c.remedy)
		}
	}
}

func TestParseNamesAllErrors(t *testing.T) {
	_, err := parse([]string{"-bogus", "-memory", "x", "-swap", "1m", "-env", "A=1", "-timeout"})
	require.Error(t, err)
	assert.Equal(t, `flag provided but not defined: -bogus
-memory: "x" is not a size such as 500k, 64m or 2g
flag needs an argument: -timeout`, err.Error(), "neither the missing command nor the lonely -swap are mistakes of their own")

	_, err = parse([]string{"-net", "x", "-swap", "1m", "true"})
	assert.EqualError(t, err, "-net: \"x\" is neither none nor new nor host\n-swap: means nothing without -memory")

	_, err = parse(nil)
	assert.EqualError(t, err, "no command is given")
}

func TestFlagNames(t *testing.T) {
	err := sandbox.ErrTimeout
	assert.ErrorIs(t, flagNames(err), err)
	_, err = sandbox.New(sandbox.WithCommand("true"), sandbox.WithSwap(1), sandbox.WithCPUWeight(10001), sandbox.WithDir("With/WithDir"),
		sandbox.WithBind("/a", "/"), sandbox.WithWritableRoot(-1)).Explain()
	require.Error(t, err)
	assert.ElementsMatch(t, []string{
		`-swap: means nothing without -memory`,
		`-cpu-weight: 10001 is not between 1 and 10000`,
		`-dir: "With/WithDir" is not an absolute path`,
		`-bind: /: use -rootfs`,
		`-writable-root: -1 is not a positive number of bytes`,
	}, lines(flagNames(err)))
}
