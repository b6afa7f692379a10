package spec

import (
	"context"
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// shared is what is no longer shared by sandboxes that differ in a field.
type shared struct{ plans, command, prepared bool }

// groups is what each group of a Spec means for sharing, whichever of its fields differs.
var groups = map[string]shared{
	"Root":        {plans: true},
	"Namespaces":  {plans: true},
	"Security":    {plans: true, command: true},
	"Command":     {command: true},
	"Limits":      {prepared: true},
	"Place":       {prepared: true},
	"Supervision": {},
	"Streams":     {},
	"Function":    {},
}

// fieldsApart are those that mean something else than their group.
var fieldsApart = map[string]shared{
	"Streams.Extra":    {command: true}, // their number
	"Streams.Function": {command: true}, // whether there are any
}

// other is a value for fields that reflection can't make one for.
var other = map[reflect.Type]any{
	reflect.TypeFor[any]():                         7,
	reflect.TypeFor[error]():                       errors.New("x"),
	reflect.TypeFor[[]Mount]():                     []Mount{{"/x", Tmpfs{1}}},
	reflect.TypeFor[*specs.LinuxSeccomp]():         &specs.LinuxSeccomp{},
	reflect.TypeFor[map[string]Rlimit]():           map[string]Rlimit{"core": {1, 2}},
	reflect.TypeFor[func(Refusal)]():               func(Refusal) {},
	reflect.TypeFor[func(context.Context) error](): func(context.Context) error { return nil },
}

// change makes a field another one.
func change(t *testing.T, v reflect.Value) {
	if value, ok := other[v.Type()]; ok {
		v.Set(reflect.ValueOf(value))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint16, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	case reflect.Interface:
		v.Set(reflect.ValueOf(os.Stdin)) // of the standard streams
	default:
		t.Fatalf("a field has the type %v: say in this test how it can differ", v.Type())
	}
}

// fields calls f for each field in v that is no struct, with the path to it.
func fields(v reflect.Value, path string, f func(path string, field reflect.Value)) {
	if v.Kind() != reflect.Struct {
		f(path, v)
		return
	}
	for i := range v.NumField() {
		fields(v.Field(i), path+"."+v.Type().Field(i).Name, f)
	}
}

// TestEveryFieldIsInAGroup changes each field of a Spec: what its group says, and nothing else, is
// no longer shared.
func TestEveryFieldIsInAGroup(t *testing.T) {
	all := reflect.TypeFor[Spec]()
	require.Equal(t, len(groups), all.NumField())
	for i := range all.NumField() {
		name, seen := all.Field(i).Name, 0
		want, ok := groups[name]
		require.True(t, ok, "%s is in no group: say in this test what it means for sharing", name)
		fields(reflect.New(all).Elem().Field(i), name, func(path string, _ reflect.Value) {
			seen++
			want := want
			if apart, ok := fieldsApart[path]; ok {
				want = apart
			}
			a, b := Defaults(), Defaults()
			fields(reflect.ValueOf(&b).Elem().Field(i), name, func(at string, field reflect.Value) {
				if at == path {
					change(t, field)
				}
			})
			require.Equal(t, want, shared{!a.SamePlans(&b), !a.SameCommand(&b), !a.SamePrepared(&b)}, path)
			require.Equal(t, want, shared{!b.SamePlans(&a), !b.SameCommand(&a), !b.SamePrepared(&a)}, path)
			require.True(t, b.SamePlans(&b) && b.SameCommand(&b) && b.SamePrepared(&b), path)
		})
		require.NotZero(t, seen, name)
	}
}

// TestSameValuesAreShared has equal values behind different pointers.
func TestSameValuesAreShared(t *testing.T) {
	made := func() *Spec {
		s, cpus := Defaults(), "0-1"
		s.SetImage(Image{Name: "x", Layers: []string{"/a"}, Groups: []int{1}, Dirs: []string{"/b"}, Writable: 1})
		s.Limits.CPUSet, s.Limits.IO = &cpus, []IO{{Path: "/"}}
		s.Root.Mounts = []Mount{{"/c", Bind{Path: "/d"}}, {"/e", Tmpfs{1}}, {"/f", File{Data: "x"}}}
		s.Security.Capabilities = []string{"CAP_KILL"}
		s.Command.Argv, s.Command.Env, s.Command.Rlimits = []string{"true"}, []string{"A=1"}, map[string]Rlimit{"core": {1, 1}}
		return &s
	}
	require.True(t, made().SamePlans(made()))
	require.True(t, made().SameCommand(made()))
	require.True(t, made().SamePrepared(made()))
}

// Mounts of each kind are the same only if they are equal.
func TestMountsAreComparable(t *testing.T) {
	from := &struct{ int }{}
	kinds := []Source{Bind{Path: "/a"}, Bind{Path: "/b"}, Bind{Path: "/a", ReadOnly: true}, Scratch{From: from}, Scratch{From: from, ReadOnly: true},
		FS{From: from}, Tmpfs{1}, Tmpfs{2}, File{Data: "a"}, File{Data: "b"}, File{Data: "a", Mode: 0o600}}
	options := map[string]bool{}
	for i, a := range kinds {
		options[a.Option()] = true
		for j, b := range kinds {
			require.Equal(t, i == j, Mount{"/x", a} == Mount{"/x", b}, "%v %v", a, b)
		}
	}
	require.Len(t, options, 7)
}
