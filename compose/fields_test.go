//go:build linux

package compose

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

// nothing lists the fields that may say what they like.
var nothing = strings.Fields(`version networks.*.name networks.*.labels networks.*.attachable volumes.*.name volumes.*.labels
	configs.*.name configs.*.labels secrets.*.name secrets.*.labels
	services.*.labels services.*.label_file services.*.annotations services.*.expose services.*.develop services.*.attach services.*.init
	services.*.depends_on.*.restart services.*.logging.options
	services.*.deploy.labels services.*.deploy.endpoint_mode services.*.deploy.placement services.*.deploy.update_config services.*.deploy.rollback_config
	services.*.deploy.restart_policy.delay services.*.deploy.restart_policy.window
	services.*.ports.[].mode services.*.ports.[].name services.*.ports.[].app_protocol services.*.networks.*.priority services.*.networks.*.gw_priority
	services.*.volumes.[].consistency services.*.volumes.[].bind.selinux services.*.volumes.[].volume.nocopy services.*.volumes.[].volume.labels
	services.*.volumes.[].tmpfs.mode`)

// meaning has for each other field that is supported what a service says without and with it: a
// difference, be it an error. What follows "---" is beside the services.
var meaning = map[string][2]string{
	"name":                                          {"", "---\nname: other"},
	"networks.*.driver":                             {"networks: [n]\n---\nnetworks: {n: {}}", "networks: [n]\n---\nnetworks: {n: {driver: overlay}}"},
	"networks.*.internal":                           {"networks: [n]\n---\nnetworks: {n: {}}", "networks: [n]\n---\nnetworks: {n: {internal: true}}"},
	"volumes.*.driver":                              {"volumes: ['vol:/v']\n---\nvolumes: {vol: {}}", "volumes: ['vol:/v']\n---\nvolumes: {vol: {driver: nfs}}"},
	"configs.*.file":                                {"", "configs: [c]\n---\nconfigs: {c: {file: compose.yaml}}"},
	"configs.*.content":                             {"", "configs: [c]\n---\nconfigs: {c: {content: x}}"},
	"configs.*.environment":                         {"", "configs: [c]\n---\nconfigs: {c: {environment: GIVEN}}"},
	"secrets.*.file":                                {"", "secrets: [s]\n---\nsecrets: {s: {file: compose.yaml}}"},
	"secrets.*.environment":                         {"", "secrets: [s]\n---\nsecrets: {s: {environment: GIVEN}}"},
	"services.*.image":                              {"", "image: other"},
	"services.*.platform":                           {"", "platform: linux/arm64"},
	"services.*.pull_policy":                        {"", "pull_policy: never"},
	"services.*.command":                            {"", "command: x"},
	"services.*.entrypoint":                         {"", "entrypoint: x"},
	"services.*.working_dir":                        {"", "working_dir: /x"},
	"services.*.user":                               {"", "user: app"},
	"services.*.group_add":                          {"", "group_add: ['7']"},
	"services.*.environment":                        {"", "environment: {A: b}"},
	"services.*.env_file.[].path":                   {"", "env_file: [{path: missing}]"},
	"services.*.env_file.[].required":               {"env_file: [{path: missing}]", "env_file: [{path: missing, required: false}]"},
	"services.*.stdin_open":                         {"", "stdin_open: true"},
	"services.*.tty":                                {"", "tty: true"},
	"services.*.extra_hosts":                        {"", "extra_hosts: ['other.test:127.0.0.1']"},
	"services.*.logging.driver":                     {"", "logging: {driver: syslog}"},
	"services.*.profiles":                           {"", "profiles: [p]"},
	"services.*.container_name":                     {"", "container_name: other"},
	"services.*.extends.service":                    {"", "extends: {service: db}"},
	"services.*.extends.file":                       {"extends: {service: db}", "extends: {service: db, file: other.yaml}"},
	"include":                                       {"", "---\ninclude: [{path: other.yaml}]"},
	"services.*.links":                              {"", "links: ['db:other']"},
	"services.*.depends_on.*.condition":             {"depends_on: [db]", "depends_on: {db: {condition: service_completed_successfully}}"},
	"services.*.depends_on.*.required":              {"depends_on: {off: {condition: service_started}}", "depends_on: {off: {condition: service_started, required: false}}"},
	"services.*.restart":                            {"", "restart: always"},
	"services.*.stop_signal":                        {"", "stop_signal: INT"},
	"services.*.stop_grace_period":                  {"", "stop_grace_period: 1s"},
	"services.*.scale":                              {"", "scale: 2"},
	"services.*.deploy.mode":                        {"", "deploy: {mode: global}"},
	"services.*.deploy.replicas":                    {"", "deploy: {replicas: 2}"},
	"services.*.deploy.restart_policy.condition":    {"deploy: {restart_policy: {condition: any}}", "deploy: {restart_policy: {condition: on-failure}}"},
	"services.*.deploy.restart_policy.max_attempts": {"deploy: {restart_policy: {condition: any}}", "deploy: {restart_policy: {condition: any, max_attempts: 3}}"},
	"services.*.deploy.resources.limits.cpus":       {"", "deploy: {resources: {limits: {cpus: '2'}}}"},
	"services.*.deploy.resources.limits.memory":     {"", "deploy: {resources: {limits: {memory: 64m}}}"},
	"services.*.deploy.resources.limits.pids":       {"", "deploy: {resources: {limits: {pids: 9}}}"},
	"services.*.mem_limit":                          {"", "mem_limit: 64m"},
	"services.*.cpus":                               {"", "cpus: 2"},
	"services.*.cpuset":                             {"", "cpuset: '0'"},
	"services.*.pids_limit":                         {"", "pids_limit: 9"},
	"services.*.shm_size":                           {"", "shm_size: 1m"},
	"services.*.ulimits":                            {"", "ulimits: {nofile: 100}"},
	"services.*.healthcheck.test":                   {"", "healthcheck: {test: 'true'}"},
	"services.*.healthcheck.interval":               {"healthcheck: {test: 'true'}", "healthcheck: {test: 'true', interval: 7s}"},
	"services.*.healthcheck.timeout":                {"healthcheck: {test: 'true'}", "healthcheck: {test: 'true', timeout: 7s}"},
	"services.*.healthcheck.retries":                {"healthcheck: {test: 'true'}", "healthcheck: {test: 'true', retries: 7}"},
	"services.*.healthcheck.start_period":           {"healthcheck: {test: 'true'}", "healthcheck: {test: 'true', start_period: 7s}"},
	"services.*.healthcheck.start_interval":         {"healthcheck: {test: 'true'}", "healthcheck: {test: 'true', start_period: 7s, start_interval: 7s}"},
	"services.*.healthcheck.disable":                {"", "healthcheck: {disable: true}"},
	"services.*.ports.[].target":                    {"", "ports: [{target: 80}]"},
	"services.*.ports.[].published":                 {"ports: [{target: 80}]", "ports: [{target: 80, published: '81'}]"},
	"services.*.ports.[].host_ip":                   {"ports: [{target: 80}]", "ports: [{target: 80, host_ip: 127.0.0.2}]"},
	"services.*.ports.[].protocol":                  {"ports: [{target: 80}]", "ports: [{target: 80, protocol: udp}]"},
	"services.*.networks.*.aliases":                 {"networks: {default: {}}", "networks: {default: {aliases: [other]}}"},
	"services.*.network_mode":                       {"", "network_mode: none"},
	"services.*.hostname":                           {"", "hostname: other"},
	"services.*.volumes.[].type":                    {"volumes: [{type: volume, target: /v}]", "volumes: [{type: tmpfs, target: /v}]"},
	"services.*.volumes.[].source":                  {"volumes: [{type: bind, source: ., target: /v}]", "volumes: [{type: bind, source: /, target: /v}]"},
	"services.*.volumes.[].target":                  {"volumes: [{type: bind, source: ., target: /v}]", "volumes: [{type: bind, source: ., target: /w}]"},
	"services.*.volumes.[].read_only":               {"volumes: [{type: bind, source: ., target: /v}]", "volumes: [{type: bind, source: ., target: /v, read_only: true}]"},
	"services.*.volumes.[].bind.create_host_path":   {"volumes: [{type: bind, source: ., target: /v}]", "volumes: [{type: bind, source: ., target: /v, bind: {create_host_path: true}}]"},
	"services.*.volumes.[].tmpfs.size":              {"volumes: [{type: tmpfs, target: /v}]", "volumes: [{type: tmpfs, target: /v, tmpfs: {size: 1m}}]"},
	"services.*.tmpfs":                              {"", "tmpfs: /x"},
	"services.*.read_only":                          {"", "read_only: true"},
	"services.*.cap_add":                            {"", "cap_add: [SYS_CHROOT]"},
	"services.*.cap_drop":                           {"", "cap_drop: [ALL]"},
	"services.*.security_opt":                       {"", "security_opt: ['seccomp:unconfined']"},
	"services.*.configs.[].source":                  {"", "configs: [{source: c}]\n---\nconfigs: {c: {content: x}}"},
	"services.*.configs.[].target":                  {"configs: [{source: c}]\n---\nconfigs: {c: {content: x}}", "configs: [{source: c, target: /x}]\n---\nconfigs: {c: {content: x}}"},
	"services.*.configs.[].mode":                    {"configs: [{source: c}]\n---\nconfigs: {c: {content: x}}", "configs: [{source: c, mode: 0400}]\n---\nconfigs: {c: {content: x}}"},
	"services.*.secrets.[].source":                  {"", "secrets: [{source: s}]\n---\nsecrets: {s: {environment: GIVEN}}"},
	"services.*.secrets.[].target":                  {"secrets: [{source: s}]\n---\nsecrets: {s: {environment: GIVEN}}", "secrets: [{source: s, target: x}]\n---\nsecrets: {s: {environment: GIVEN}}"},
	"services.*.secrets.[].mode":                    {"secrets: [{source: s}]\n---\nsecrets: {s: {environment: GIVEN}}", "secrets: [{source: s, mode: 0400}]\n---\nsecrets: {s: {environment: GIVEN}}"},
}

// Each field that Compose files have, as compose-go's schema lists them, means something here, is
// known to mean nothing, or is an error that names it.
func TestFields(t *testing.T) {
	var leaves []string
	for _, path := range schema.AttributePaths() {
		leaves = append(leaves, string(path))
	}
	for _, path := range leaves {
		if slices.ContainsFunc(leaves, func(other string) bool { return strings.HasPrefix(other, path+".") }) {
			continue // one of its fields says it
		}
		r, depth := rules, 0
		names := strings.Split(path, ".")
		for r != nil && len(r.fields) > 0 && depth < len(names) {
			r, depth = r.fields[names[depth]], depth+1
		}
		supported := strings.Join(names[:depth], ".")
		switch {
		case r == nil:
			requireRefused(t, names)
		case !slices.Contains(nothing, supported):
			require.Contains(t, meaning, supported, "%s is supported, and nobody has seen what it does", path)
		}
	}
	for path, said := range meaning {
		require.NotContains(t, nothing, path)
		assert.NotEqual(t, meant(t, said[0]), meant(t, said[1]), "%s does nothing", path)
	}
}

// requireRefused requires an error for a file that has nothing but the field.
func requireRefused(t *testing.T, names []string) {
	t.Helper()
	content, depth := "", 0
	for _, name := range names {
		switch {
		case name == "[]":
			content += strings.Repeat(" ", depth) + "-\n"
		case name == "*":
			content += strings.Repeat(" ", depth) + "any:\n"
		default:
			content += strings.Repeat(" ", depth) + name + ":\n"
		}
		depth++
	}
	f, err := parse("compose.yaml", []byte(content), newBudget())
	require.NoError(t, err, content)
	l := &loading{conf: &config{}, files: []*file{f}}
	found := l.unsupported()
	require.Len(t, found, 1, content)
	field := strings.NewReplacer(".[]", "[0]", "*", "any").Replace(strings.Join(names, "."))
	require.True(t, strings.HasPrefix(field, found[0].Field), "%s for %s", found[0], field)
	require.Equal(t, strings.Count(strings.NewReplacer("[0]", ".0").Replace(found[0].Field), ".")+1, found[0].Line, "%s", content)
}

// meant describes a project with a service that says that, or the error.
func meant(t *testing.T, said string) string {
	t.Helper()
	of, beside, _ := strings.Cut(said, "---\n")
	content := beside + "\nservices:\n  db: {image: y, stop_signal: INT}\n  off: {image: y, profiles: [off]}\n  web:\n    image: x\n"
	if strings.HasPrefix(of, "image:") {
		content = strings.TrimSuffix(content, "    image: x\n")
	}
	for line := range strings.Lines(of) {
		content += "    " + line
	}
	dir := write(t, map[string]string{"project/compose.yaml": content})
	p, err := Load(filepath.Join(dir, "project"), Environ("GIVEN=x"), Allow(sandbox.AllowHost("one.test", 80)))
	if err != nil {
		return strings.ReplaceAll(err.Error(), dir, "DIR")
	}
	return strings.ReplaceAll(describe(p), dir, "DIR")
}
