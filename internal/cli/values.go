package cli

// The values of flags: each function here parses one kind of value. The library checks ranges, all
// at once.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/named"
	"github.com/cellkit/sandbox/internal/spec"
)

// setter parses a flag's value into the settings.
type setter = func(s *settings, value string) error

// text returns the setter of a value that the library takes as it is. It can't be empty, since that
// would mean the default, or none.
func text(option func(string) sandbox.Option) setter {
	return func(s *settings, value string) error {
		if value == "" {
			return errors.New(`"" is empty: give a value, or leave the flag out`)
		}
		s.add(option(value))
		return nil
	}
}

// toggle returns the setter of a flag without a value. -name=false is as if it were not given.
func toggle(do func(*settings)) setter {
	return func(s *settings, value string) error {
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false: leave it out", value)
		}
		if on {
			do(s)
		}
		return nil
	}
}

func size(use func(*settings, int64)) setter {
	return func(s *settings, value string) error {
		n, err := ParseSize(value)
		if err == nil {
			use(s, n)
		}
		return err
	}
}

// ParseSize parses a number of bytes, or with k, m or g of KiB, MiB or GiB.
func ParseSize(value string) (int64, error) {
	digits, unit := value, int64(1)
	if i := len(value) - 1; i > 0 {
		switch value[i] {
		case 'k', 'K':
			digits, unit = value[:i], sandbox.KiB
		case 'm', 'M':
			digits, unit = value[:i], sandbox.MiB
		case 'g', 'G':
			digits, unit = value[:i], sandbox.GiB
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if errors.Is(err, strconv.ErrRange) || err == nil && int64(n) > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is more than 63 bits hold", value)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 500k, 64m or 2g", value)
	}
	return int64(n) * unit, nil
}

// formatSize formats a size for people.
func formatSize(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{sandbox.GiB, "GiB"}, {sandbox.MiB, "MiB"}, {sandbox.KiB, "KiB"}} {
		if n >= u.size {
			number := strconv.FormatFloat(float64(n)/float64(u.size), 'f', 1, 64)
			return strings.TrimSuffix(number, ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

func duration(use func(*settings, time.Duration)) setter {
	return func(s *settings, value string) error {
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 500ms, 2s or 1m30s", value)
		}
		use(s, d)
		return nil
	}
}

// stopSignal parses NAME:TIME, such as TERM:10s or SIGINT:1s.
func stopSignal(s *settings, value string) error {
	name, grace, _ := strings.Cut(value, ":")
	number := spec.SignalOf(name)
	d, err := time.ParseDuration(grace)
	if number == 0 || err != nil || d <= 0 {
		return fmt.Errorf("%q is not NAME:TIME, such as TERM:10s, with a number or one of %s", value, spec.SignalNames)
	}
	s.add(sandbox.WithStopSignal(number, d))
	return nil
}

func cpus(s *settings, value string) error {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return fmt.Errorf("%q is not a number such as 0.5 or 2", value)
	}
	s.add(sandbox.WithCPUs(n))
	return nil
}

func cpuWeight(s *settings, value string) error {
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a number from 1 to 10000", value)
	}
	s.add(sandbox.WithCPUWeight(n))
	return nil
}

func pids(s *settings, value string) error {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a number of processes", value)
	}
	s.add(sandbox.WithPIDs(n))
	return nil
}

// rlimit parses NAME=SOFT[:HARD]. HARD is SOFT if not given.
func rlimit(s *settings, value string) error {
	name, limits, ok := strings.Cut(value, "=")
	softText, hardText, hasHard := strings.Cut(limits, ":")
	if !hasHard {
		hardText = softText
	}
	soft, err1 := parseRlimit(softText)
	hard, err2 := parseRlimit(hardText)
	if err := errors.Join(err1, err2); !ok || err != nil {
		return fmt.Errorf("%q is not NAME=SOFT[:HARD] with numbers, sizes or \"unlimited\", such as nofile=64:128 or as=1g", value)
	}
	s.add(sandbox.WithRlimit(name, soft, hard))
	return nil
}

func parseRlimit(value string) (uint64, error) {
	if value == "unlimited" {
		return sandbox.RlimitInfinity, nil
	}
	n, err := ParseSize(value)
	return uint64(n), err
}

func env(s *settings, value string) error {
	if value == "" {
		return errors.New(`"" is not NAME or NAME=VALUE, such as LANG=C`)
	}
	if !strings.Contains(value, "=") {
		mine, ok := os.LookupEnv(value)
		if !ok {
			return fmt.Errorf("%s is not set here: set it, or use -env %s=VALUE", value, value)
		}
		value += "=" + mine
	}
	s.env = append(s.env, value)
	s.add(sandbox.WithEnv(value))
	return nil
}

func runName(s *settings, value string) error {
	s.name = value
	return named.Check(value)
}

// user is checked once it is known whether there is an image, whose users have names.
func user(s *settings, value string) error {
	if s.user = value; value == "" {
		return errors.New("it is empty: name a user, or leave it out")
	}
	return nil
}

// addUser sets what -user says where no image knows users.
func (s *settings) addUser() error {
	if s.user == "" || s.image != "" {
		return nil
	}
	uidText, gidText, hasGID := strings.Cut(s.user, ":")
	if !hasGID {
		gidText = uidText
	}
	uid, err1 := strconv.Atoi(uidText)
	gid, err2 := strconv.Atoi(gidText)
	if err1 != nil || err2 != nil {
		return &flagError{runFlag{name: "user", option: "WithUser"}, fmt.Errorf("%q is not UID or UID:GID in numbers, such as 1000:1000; names are for -image", s.user)}
	}
	s.add(sandbox.WithUser(uid, gid))
	return nil
}

func groups(s *settings, value string) error {
	var gids []int
	for text := range strings.SplitSeq(value, ",") {
		gid, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a list of group ids in numbers, such as 10,27", value)
		}
		gids = append(gids, gid)
	}
	s.add(sandbox.WithGroups(gids...))
	return nil
}

func capability(s *settings, value string) error {
	s.add(sandbox.WithCapabilities("CAP_" + strings.TrimPrefix(strings.ToUpper(value), "CAP_")))
	return nil
}

func seccomp(s *settings, value string) error {
	data, err := os.ReadFile(value)
	if err != nil {
		return err
	}
	// Docker's profiles look much the same but have conditions, which must not be ignored.
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	profile := &specs.LinuxSeccomp{}
	if err := d.Decode(profile); err != nil {
		return fmt.Errorf("%s is not the linux.seccomp object of an OCI runtime configuration: %w", value, err)
	}
	s.add(sandbox.WithSeccomp(profile))
	return nil
}
