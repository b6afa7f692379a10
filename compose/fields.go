package compose

// Which fields of Compose files are supported. All others are errors.

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// supported lists the fields that mean something here, or may say what they like: "*" is any name,
// "[]" an entry of a list, and what has no fields here may have any.
const supported = `
name version include
networks.* networks.*.name networks.*.driver networks.*.internal networks.*.labels networks.*.attachable
volumes.* volumes.*.name volumes.*.driver volumes.*.labels
configs.*.name configs.*.file configs.*.content configs.*.environment configs.*.labels
secrets.*.name secrets.*.file secrets.*.environment secrets.*.labels

services.*.image services.*.platform services.*.pull_policy
services.*.command services.*.entrypoint services.*.working_dir services.*.user services.*.group_add
services.*.environment services.*.env_file.[].path services.*.env_file.[].required
services.*.labels services.*.label_file services.*.logging.driver services.*.logging.options services.*.stdin_open services.*.tty services.*.annotations services.*.expose services.*.develop services.*.attach services.*.init
services.*.profiles services.*.container_name services.*.extends.service services.*.extends.file services.*.links
services.*.depends_on.*.condition services.*.depends_on.*.required services.*.depends_on.*.restart
services.*.restart services.*.stop_signal services.*.stop_grace_period services.*.scale
services.*.deploy.mode services.*.deploy.replicas services.*.deploy.labels services.*.deploy.endpoint_mode
services.*.deploy.placement services.*.deploy.update_config services.*.deploy.rollback_config
services.*.deploy.restart_policy.condition services.*.deploy.restart_policy.max_attempts
services.*.deploy.restart_policy.delay services.*.deploy.restart_policy.window
services.*.deploy.resources.limits.cpus services.*.deploy.resources.limits.memory services.*.deploy.resources.limits.pids
services.*.mem_limit services.*.cpus services.*.cpuset services.*.pids_limit services.*.shm_size services.*.ulimits
services.*.healthcheck.test services.*.healthcheck.interval services.*.healthcheck.timeout services.*.healthcheck.retries
services.*.healthcheck.start_period services.*.healthcheck.start_interval services.*.healthcheck.disable
services.*.ports.[].target services.*.ports.[].published services.*.ports.[].host_ip services.*.ports.[].protocol
services.*.ports.[].mode services.*.ports.[].name services.*.ports.[].app_protocol
services.*.networks.*.aliases services.*.networks.*.priority services.*.networks.*.gw_priority services.*.network_mode services.*.hostname services.*.extra_hosts
services.*.volumes.[].type services.*.volumes.[].source services.*.volumes.[].target services.*.volumes.[].read_only
services.*.volumes.[].consistency services.*.volumes.[].bind.create_host_path services.*.volumes.[].bind.selinux
services.*.volumes.[].volume.nocopy services.*.volumes.[].volume.labels services.*.volumes.[].tmpfs.size services.*.volumes.[].tmpfs.mode
services.*.tmpfs services.*.read_only services.*.cap_add services.*.cap_drop services.*.security_opt
services.*.configs.[].source services.*.configs.[].target services.*.configs.[].mode
services.*.secrets.[].source services.*.secrets.[].target services.*.secrets.[].mode`

// remedies say what to do about fields that are not supported.
var remedies = map[string]string{
	"networks.*.external":                      "there are no networks outside of a project: leave it out, and list what services reach by Allow (-allow)",
	"networks.*.ipam":                          "addresses are chosen here: leave it out, and use names",
	"volumes.*.external":                       "there are no volumes outside of a project: leave it out, and choose where volumes are by VolumeDir (-volumes)",
	"volumes.*.driver_opts":                    "volumes have no drivers: bind a directory in the service",
	"configs.*.external":                       "there are no configs outside of a project: use file or content",
	"secrets.*.external":                       "there are no secrets outside of a project: use file or environment",
	"services.*.build":                         "images are not built here: build it by docker build, buildah or the like, and name the result by image, in a registry or by a path such as ./image.tar",
	"services.*.privileged":                    "a run has no right on this machine: leave it out, and list what it needs by cap_add",
	"services.*.sysctls":                       "no parameters of the kernel are set: leave it out; any user may listen on any port as it is",
	"services.*.devices":                       "a run has a /dev of its own: leave it out, or bind the device by volumes",
	"services.*.dns":                           "names are those of services and of Allow: leave it out",
	"services.*.pid":                           "each run has namespaces of its own: leave it out",
	"services.*.ipc":                           "each run has namespaces of its own: leave it out",
	"services.*.userns_mode":                   "each run has namespaces of its own: leave it out",
	"services.*.uts":                           "each run has namespaces of its own: leave it out",
	"services.*.cgroup_parent":                 "each run has a cgroup of its own: leave it out",
	"services.*.external_links":                "there are no services outside of a project: leave it out, and list what services reach by Allow (-allow)",
	"services.*.volumes_from":                  "name the volumes in each service that has them",
	"services.*.post_start":                    "no commands are executed in a service that is up: make a service of it that depends on this one",
	"services.*.pre_stop":                      "no commands are executed before a service ends: handle its signal, stop_signal",
	"services.*.mem_reservation":               "memory can be limited, not reserved: use mem_limit",
	"services.*.networks.*.ipv4_address":       "addresses are chosen here: leave it out, and use names",
	"services.*.deploy.resources.reservations": "resources can be limited, not reserved: use limits",
}

// includeRemedies say what to do about fields of an entry of include: only path is supported.
var includeRemedies = map[string]string{
	"project_directory": "paths are from the directory of the file that is included: leave it out",
	"env_file":          "variables are those of .env beside the file that is included: leave it out",
}

// rule is what may be in a field: fields of its own, or anything if it has none.
type rule struct{ fields map[string]*rule }

var rules = parseRules(supported)

func parseRules(list string) *rule {
	top := &rule{}
	for path := range strings.FieldsSeq(list) {
		at := top
		for name := range strings.SplitSeq(path, ".") {
			if at.fields == nil {
				at.fields = map[string]*rule{}
			}
			if at.fields[name] == nil {
				at.fields[name] = &rule{}
			}
			at = at.fields[name]
		}
	}
	return top
}

// errJobs can't be ignored: compose-go extends jobs, without a bound.
var errJobs = errors.New("jobs are not supported, and can't be ignored: make a service of it that ends, which others wait for by service_completed_successfully")

// notSupported is what is wrong with a field that has no remedy of its own.
const notSupported = "not supported here: leave it out"

// ignorable returns what Ignore takes for a field: of a service, the name that it has in all.
func ignorable(path []string) string {
	if len(path) > 2 && path[0] == "services" {
		return strings.Join(path[2:], ".")
	}
	return dotted(path)
}

// walk finds the fields of files that are not supported.
type walk struct {
	file    *file
	left    int
	skipped func(path []string) bool // whether nothing is to be said of it
	found   []*Error
	// Fields that take back, or replace, what files before have of them.
	replaced []string
}

// node looks at what a field has. pattern is its path with "*" for names.
func (w *walk) node(n *yaml.Node, r *rule, path, pattern []string) {
	if w.left--; w.left < 0 || len(r.fields) == 0 || w.skipped(path) {
		return
	}
	switch n.Kind {
	case yaml.SequenceNode:
		if entry := r.fields["[]"]; entry != nil {
			for i, item := range n.Content {
				w.node(resolved(item), entry, append(slices.Clip(path), strconv.Itoa(i)), append(slices.Clip(pattern), "[]"))
			}
		}
	case yaml.MappingNode:
		for _, p := range pairs(n, &w.left) {
			name := p.key.Value
			next, as := r.fields[name], name
			if next == nil && r.fields["*"] != nil {
				next, as = r.fields["*"], "*"
			}
			at, patternAt := append(slices.Clip(path), name), append(slices.Clip(pattern), as)
			if p.value.Tag == "!reset" || p.value.Tag == "!override" {
				w.replaced = append(w.replaced, dotted(at))
			}
			switch {
			case p.value.Tag == "!reset":
			case next != nil:
				w.node(p.value, next, at, patternAt)
			case !strings.HasPrefix(name, "x-") && !w.skipped(at):
				what := cmp.Or(remedies[strings.Join(patternAt, ".")], notSupported)
				w.found = append(w.found, &Error{w.file.path, p.key.Line, dotted(at), fmt.Errorf("%s, or have it ignored by Ignore (-ignore %s)", what, ignorable(at))})
			}
		}
	}
}
