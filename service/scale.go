package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/spec"
)

// Scale runs the service n times, as replicas that share its name and its addresses: others of the
// network find all of them by the name, in an order that changes, and what comes to Addr, or to an
// address of sandbox.WithPublish, goes to one after the other. A replica that is not ready, or
// starts again, gets nothing while others are ready. Connections to one that fails are lost.
//
// Each replica has runs, restarts, checks, and copies of From and Volume, of its own; what the
// sandbox has, such as a bind or a scratch, they have in common. The service is ready when all
// replicas are, and has failed when one has failed for good: it takes Restart to have one replaced.
// Default: 1.
func Scale(n int) Option { return func(c *config) { c.scale = n } }

// checkScale returns why the sandbox's runs can't be several.
func checkScale(c *spec.Spec) (errs []error) {
	for _, p := range c.Supervision.Publish {
		if p.Protocol == "udp" && !isAnyPort(p) {
			errs = append(errs, fault.Option("WithPublish", "%s/udp leads to one run alone, and service.Scale makes several: publish it at port 0, or by TCP", p.Address))
		}
	}
	return errs
}

func isAnyPort(p spec.Published) bool { return strings.HasSuffix(p.Address, ":0") }

// shareAddresses has replicas listen at the same addresses, by TCP.
func (i *Instance) shareAddresses(c *spec.Spec) {
	own := slices.Clone(c.Supervision.Publish)
	for n, p := range own {
		own[n].Shared = p.Protocol == "tcp" && !isAnyPort(p)
	}
	for _, p := range i.ports {
		own = append(own, spec.Published{Address: p.addr, Protocol: "tcp", Port: p.port, Shared: true})
	}
	c.Supervision.Publish = own
}

// addReplicas makes the replicas of an instance, before wait ends.
func (i *Instance) addReplicas(net *sandbox.PrivateNetwork, wait context.Context) error {
	for n := range i.service.conf.scale {
		r := &Instance{service: i.service, log: i.log, replica: n + 1, whole: i, state: Preparing}
		r.begin(i.ctx)
		i.replicas = append(i.replicas, r)
		if err := errors.Join(r.reservePorts(), r.makeVolumes(wait)); err != nil {
			return err
		}
		r.s = i.service.s.With(i.shareAddresses).With(r.options(net)...)
		i.place = r.place
	}
	return nil
}

// superviseAll runs the replicas until they have ended for good.
func (i *Instance) superviseAll() {
	defer close(i.ended)
	defer i.cancel()
	defer i.log.close(0)
	defer i.release()
	var all sync.WaitGroup
	for _, r := range i.replicas {
		all.Go(func() {
			r.supervise()
			if err := r.Err(); err != nil || !r.wasReady() {
				i.failBy(err)
			}
		})
	}
	all.Go(i.awaitReplicas)
	all.Wait()
}

// awaitReplicas makes the instance ready once all of its replicas are.
func (i *Instance) awaitReplicas() {
	for _, r := range i.replicas {
		select {
		case <-r.ready:
			continue
		case <-r.ended:
		}
		if !r.wasReady() { // as Exits has it, it has exited since
			return
		}
	}
	close(i.ready)
}

// wasReady reports whether the instance has been ready.
func (i *Instance) wasReady() bool {
	select {
	case <-i.ready:
		return true
	default:
		return false
	}
}

// failBy ends all replicas, as one of them has failed, or was closed before it was ready.
func (i *Instance) failBy(err error) {
	i.mu.Lock()
	if i.err == nil {
		i.err = err
	}
	i.mu.Unlock()
	i.cancel()
}

// Replicas returns the replicas of Scale, each an instance with a state, run, lines and addresses
// of its own, which its Close ends alone. Without Scale it returns the instance itself.
func (i *Instance) Replicas() []*Instance {
	if i.replicas == nil {
		return []*Instance{i}
	}
	return slices.Clone(i.replicas)
}

// Replica returns the number of a replica, from 1, and 0 for what is none.
func (i *Instance) Replica() int { return i.replica }

// Whole returns the instance of which this one is a replica, or itself if it is none.
func (i *Instance) Whole() *Instance {
	if i.whole == nil {
		return i
	}
	return i.whole
}

// anyProcess returns the run of a replica, of one that is ready if there is such.
func anyProcess(replicas []*Instance) (found *sandbox.Process) {
	for _, r := range replicas {
		p := r.Process()
		if p != nil && r.State() == Running {
			return p
		}
		if found == nil {
			found = p
		}
	}
	return found
}

// stateOf returns what replicas are doing as one.
func stateOf(replicas []*Instance) State {
	has := map[State]bool{}
	for _, r := range replicas {
		has[r.State()] = true
	}
	for _, s := range []State{Failed, Running, Preparing, Starting, Waiting, Stopping} {
		if has[s] {
			return s
		}
	}
	return Ended
}
