package compose

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// Which services wait for which others.

// maxSteps bounds the steps from service to service in looking for circles: a second or two.
const maxSteps = 1 << 25

// bind makes a project of a model, once it is known that looking for circles in it does not take
// long.
func bind(model map[string]any, details types.ConfigDetails, options []func(*loader.Options)) (*types.Project, error) {
	draft := append(slices.Clip(options), func(o *loader.Options) { o.SkipConsistencyCheck, o.SelectedServices = true, nil })
	project, err := loader.ModelToProject(dependenciesOf(model), loader.ToOptions(&details, draft), details)
	if err == nil {
		err = checkDependencies(project.Services)
	}
	if err != nil {
		return nil, err
	}
	if project, err = loader.ModelToProject(model, loader.ToOptions(&details, options), details); err != nil {
		return nil, err
	}
	return project, checkDependencies(project.Services) // Only may have enabled more
}

// dependenciesOf returns a model with those of the services alone.
func dependenciesOf(model map[string]any) map[string]any {
	services := map[string]any{}
	all, _ := model["services"].(map[string]any)
	for name, of := range all {
		s, _ := of.(map[string]any)
		some := map[string]any{}
		for _, field := range []string{"depends_on", "profiles"} {
			if value, given := s[field]; given {
				some[field] = value
			}
		}
		services[name] = some
	}
	return map[string]any{"services": services}
}

// checkDependencies refuses services in which it would take long to look for circles: compose-go
// goes every way from each service, and compares each step with those before it.
func checkDependencies(services types.Services) error {
	known := map[string]ways{}
	var of func(name string, way []string) (ways, error)
	of = func(name string, way []string) (ways, error) {
		if w, isKnown := known[name]; isKnown {
			if w.count == 0 {
				return w, fmt.Errorf("depends_on leads in a circle: %s", strings.Join(append(way[slices.Index(way, name):], name), " -> "))
			}
			return w, nil
		}
		known[name] = ways{} // under way
		w := ways{count: 1}
		for on := range services[name].DependsOn {
			if _, enabled := services[on]; !enabled {
				continue
			}
			more, err := of(on, append(way, name))
			if err != nil {
				return w, err
			}
			w.count, w.steps = min(w.count+more.count, maxSteps), min(w.steps+more.steps, maxSteps)
		}
		w.steps = min(w.steps+w.count, maxSteps)
		known[name] = w
		return w, nil
	}
	steps := 0
	for name := range services {
		w, err := of(name, nil)
		if err != nil {
			return err
		}
		steps += w.steps
	}
	if steps >= maxSteps {
		return errors.New("depends_on leads more ways from service to service than can be followed: leave out what others depend on already")
	}
	return nil
}

// ways are those that lead from a service to others, with none to itself.
type ways struct{ count, steps int }

// dependencies connects the plans.
func (l *loading) dependencies() {
	for name, p := range l.plans {
		for on, d := range l.project.Services[name].DependsOn {
			other := l.plans[on]
			if other == nil {
				continue // it need not be there: compose-go has checked that
			}
			path := []string{"services", name, "depends_on", on, "condition"}
			switch d.Condition {
			case types.ServiceConditionStarted, "":
			case types.ServiceConditionHealthy:
				switch {
				case other.health == nil:
					l.wrong(path, "%s has no healthcheck: add one, or use %s", on, types.ServiceConditionStarted)
				case other.health.test == nil && !l.ignored(path):
					other.needsHealth = l.at(path, "%s has no healthcheck, nor has its image: add one, or use %s", on, types.ServiceConditionStarted)
				}
			case types.ServiceConditionCompletedSuccessfully:
				other.exits = true
			default:
				l.wrong(path, "%q is no condition", d.Condition)
			}
			p.after = append(p.after, on)
		}
		slices.Sort(p.after)
	}
}

// inOrder returns the services, each after those that it depends on.
func (p *Project) inOrder() (list []*plan) {
	of, done := map[string]*plan{}, map[string]bool{}
	for _, s := range p.services {
		of[s.name] = s
	}
	var add func(*plan)
	add = func(s *plan) {
		if done[s.name] {
			return
		}
		done[s.name] = true
		for _, name := range s.after {
			add(of[name])
		}
		list = append(list, s)
	}
	for _, s := range p.services {
		add(s)
	}
	return list
}
