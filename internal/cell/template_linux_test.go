package cell

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTemplatesAreFoundAgain(t *testing.T) {
	var ts templates
	a, isNew, evicted := ts.get("a")
	require.True(t, isNew)
	require.Empty(t, evicted)
	b, isNew, _ := ts.get("b")
	require.True(t, isNew)
	require.NotEqual(t, a.Path, b.Path)
	again, isNew, _ := ts.get("a")
	require.False(t, isNew)
	require.Same(t, a, again)
	require.Equal(t, 2, a.users)
	a.Release()
	a.Release()
	require.Equal(t, 0, a.users)
}

// TestOldestUnusedTemplateGoes fills all the room for templates.
func TestOldestUnusedTemplateGoes(t *testing.T) {
	var ts templates
	all := make([]*Template, maxTemplates)
	for i := range all {
		all[i], _, _ = ts.get(fmt.Sprint(i))
	}
	require.Nil(t, ts.oldestUnused(), "all are in use")
	_, _, evicted := ts.get("more than there is place for")
	require.Empty(t, evicted)
	require.Len(t, ts.all, maxTemplates+1)

	for _, i := range []int{5, 3, 4} {
		all[i].Release()
	}
	_, _, _ = ts.get("3") // used again: younger than 4
	all[3].Release()
	require.Same(t, all[4], ts.oldestUnused())
	_, isNew, evicted := ts.get("new")
	require.True(t, isNew)
	require.Equal(t, []*Template{all[4], all[5]}, evicted, "as many as are too many")
	require.Len(t, ts.all, maxTemplates)
	for _, e := range evicted {
		require.NotContains(t, ts.all, e.key)
	}
	back, isNew, evicted := ts.get("4")
	require.True(t, isNew)
	require.Equal(t, []*Template{all[3]}, evicted)
	require.NotEqual(t, all[4].Path, back.Path, "a place is never used twice")
}

func TestDroppedTemplateIsMadeAgain(t *testing.T) {
	var ts templates
	failed, _, _ := ts.get("a")
	waiting, isNew, _ := ts.get("a")
	require.False(t, isNew)
	require.Same(t, failed, waiting)
	ts.drop(failed)
	again, isNew, _ := ts.get("a")
	require.True(t, isNew)
	require.NotSame(t, failed, again)
	ts.drop(waiting) // the second to learn that it failed
	require.Same(t, again, ts.all["a"], "the new one stays")
	require.Equal(t, 0, failed.users)
	require.Equal(t, 1, again.users)
}

func TestTemplatesConcurrently(t *testing.T) {
	var ts templates
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 200 {
				tpl, isNew, _ := ts.get(fmt.Sprint((worker * i) % (2 * maxTemplates)))
				if isNew && i%7 == 0 {
					ts.drop(tpl)
				} else {
					tpl.Release()
				}
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, len(ts.all), maxTemplates+8)
	for _, tpl := range ts.all {
		require.Equal(t, 0, tpl.users)
	}
}
