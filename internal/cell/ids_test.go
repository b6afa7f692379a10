//go:build linux

package cell

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func span(size int64) idRange { return idRange{100000, size} }

func TestWidth(t *testing.T) {
	tests := []struct {
		uid, gid     int64
		single, wide bool
		block        int64
	}{
		{1, 1, true, false, 2},
		{3, 100, true, false, 2},
		{4, 4, false, false, 2},
		{65537, 65537, false, false, 2},
		{64*wideBlock - 1, 1 << 32, false, false, 2},
		{64 * wideBlock, 64 * wideBlock, false, true, wideBlock},
		{rootSize, rootSize, false, true, wideBlock},
	}
	for _, test := range tests {
		i := &ids{uid: span(test.uid), gid: span(test.gid)}
		require.Equal(t, test.single, i.single(), "%+v", test)
		require.Equal(t, test.wide, i.wide(), "%+v", test)
		require.Equal(t, test.block, i.block(), "%+v", test)
	}
}

// TestTake takes all blocks: none overlaps another or the fork server's, or exceeds the range.
func TestTake(t *testing.T) {
	for _, size := range []int64{4, 5, 6, 7, 100, 65537, 64 * wideBlock, 100*wideBlock + 7} {
		i := opened(t, &ids{uid: span(size), gid: span(size + 3)}, t.TempDir())
		used := map[int64]bool{}
		var blocks []int64
		for {
			b, err := i.take()
			if err != nil {
				require.ErrorIs(t, err, errNoBlock)
				break
			}
			require.Positive(t, b)
			require.LessOrEqual(t, b+i.block(), size)
			for id := b; id < b+i.block(); id++ {
				if i.wide() && id != b && id != b+i.block()-1 {
					continue // testing the first and last few is enough
				}
				require.False(t, used[id], "size %d: id %d twice", size, id)
				used[id] = true
			}
			blocks = append(blocks, b)
		}
		require.Len(t, blocks, int(size/i.block()-1), "size %d", size)
		for _, b := range blocks {
			i.give(b, func(int64) {})
		}
		again := map[int64]bool{}
		for range blocks {
			b, err := i.take()
			require.NoError(t, err)
			require.False(t, again[b])
			again[b] = true
		}
		_, err := i.take()
		require.Error(t, err)
	}
}

func opened(t *testing.T, i *ids, root string) *ids {
	require.NoError(t, i.open(root))
	t.Cleanup(i.close)
	return i
}

// Cells on one machine, of all users, share no block. A block that one cell gives back, or held
// when it ended, is available to the others.
func TestTakeFromOneMachine(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		for _, size := range []int64{41, 64 * wideBlock} {
			root := t.TempDir()
			var cells []*ids
			for range 3 {
				cells = append(cells, opened(t, &ids{uid: span(size), gid: span(size), rootless: rootless}, root))
			}
			used := map[int64]*ids{}
			for _, i := range cells {
				if !rootless {
					r := i.hostRange(i.uid, 0)
					require.Nil(t, used[r.start])
					used[r.start] = i
				}
			}
			for n := 0; ; n++ {
				i := cells[n%3]
				b, err := i.take()
				if err != nil {
					require.ErrorIs(t, err, errNoBlock)
					break
				}
				r := i.hostRange(i.uid, b)
				require.Nil(t, used[r.start], "%d twice", r.start)
				require.GreaterOrEqual(t, r.start, int64(100000))
				require.LessOrEqual(t, r.start+r.size, 100000+size)
				used[r.start] = i
			}
			require.GreaterOrEqual(t, len(used), int(size/cells[0].block())-1)

			cells[0].close()
			_, err := cells[1].take()
			require.NoError(t, err, "of a cell that has ended")
			for b := range cells[1].held {
				cells[1].give(b, func(int64) {})
			}
			n := 0
			for ; err == nil; n++ {
				_, err = cells[2].take()
			}
			require.Greater(t, n, len(used)/3-spare)
		}
	}
}

func TestClaims(t *testing.T) {
	root := t.TempDir()
	a, err := openClaims(root)
	require.NoError(t, err)
	defer a.file.Close()
	b, err := openClaims(root)
	require.NoError(t, err)
	defer b.file.Close()
	claim := func(c *claims, uid, gid int64) bool {
		ok, err := c.claim(idRange{uid, 10}, idRange{gid, 10})
		require.NoError(t, err)
		return ok
	}
	require.True(t, claim(a, 100, 200))
	require.False(t, claim(b, 109, 300), "users overlap")
	require.False(t, claim(b, 300, 191), "groups overlap")
	require.True(t, claim(b, 300, 100), "users are not groups, and what was refused is not kept")
	a.drop(idRange{100, 10}, idRange{200, 10})
	require.True(t, claim(b, 100, 200))
	b.file.Close()
	require.True(t, claim(a, 300, 100))
}

func TestTakeSingle(t *testing.T) {
	i := opened(t, &ids{uid: span(1), gid: span(1)}, t.TempDir())
	for range 10 {
		b, err := i.take()
		require.NoError(t, err)
		require.Zero(t, b)
	}
	i.give(0, func(int64) {})
	require.Empty(t, i.free)
}

func TestRunMap(t *testing.T) {
	wide, narrow, single := &ids{uid: span(rootSize), gid: span(rootSize)}, &ids{uid: span(100), gid: span(100)}, &ids{uid: span(1), gid: span(1)}
	tests := []struct {
		name      string
		ids       *ids
		block, id int64
		own       bool
		want      string
		userID    int64 // -1: own is false
	}{
		{"wide", wide, 3 * wideBlock, 1000, false, "0 196608 65536\n", 197608},
		{"wide root", wide, 3 * wideBlock, 0, false, "0 196608 65536\n", 196608},
		{"wide own", wide, 3 * wideBlock, 1000, true, "0 196608 1\n1000 0 1\n", -1},
		{"narrow", narrow, 4, 1000, false, "0 4 1\n1000 5 1\n", 5},
		{"narrow root", narrow, 4, 0, false, "0 4 1\n", 4},
		{"narrow own", narrow, 4, 1000, true, "0 4 1\n1000 0 1\n", -1},
		{"narrow own root", narrow, 4, 0, true, "0 0 1\n", -1},
		{"single", single, 0, 1000, false, "1000 0 1\n", 0},
		{"single own", single, 0, 1000, true, "1000 0 1\n", 0},
		{"single root", single, 0, 0, false, "0 0 1\n", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want, test.ids.runMap(test.block, test.id, test.own))
			if test.userID >= 0 {
				require.Equal(t, test.userID, test.ids.userID(test.block, test.id))
			}
		})
	}
}

func TestParseSubIDs(t *testing.T) {
	tests := []struct {
		name, content string
		want          idRange
	}{
		{"empty", "", idRange{}},
		{"of the user", "other:100000:65536\nme:165536:65536\n", idRange{165536, 65536}},
		{"by number", "1234:165536:65536", idRange{165536, 65536}},
		{"the largest of several", "me:1000:10\nme:5000:30\n1234:9000:20\n", idRange{5000, 30}},
		{"only a prefix", "m:1:1\nmee:1000:10\n", idRange{}},
		{"spaces around a line", "  me:1000:10  \n", idRange{1000, 10}},
		{"comments and rubbish", "# me:1:1\nme:1000\nme:a:b\nme:1000:b\nme:1000:10:1\n\n:::\n", idRange{}},
		{"rubbish before", "me:x:10\nme:1000:10\n", idRange{1000, 10}},
		{"root's own ids", "me:0:10\n", idRange{}},
		{"negative", "me:-5:10\nme:1000:-10\n", idRange{}},
		{"beyond all ids", "me:4294967290:10\n", idRange{}},
		{"overflow", "me:9223372036854775807:2\nme:2:9223372036854775807\n", idRange{}},
		{"too large to parse", "me:99999999999999999999:2\n", idRange{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want, parseSubIDs(strings.NewReader(test.content), "me", "1234"))
		})
	}
}

func TestRootRange(t *testing.T) {
	tests := []struct {
		name string
		own  []idRange
		want idRange
	}{
		{"all ids", []idRange{{0, 1<<32 - 1}}, idRange{rootStart, rootSize}},
		{"just enough", []idRange{{0, 10}, {rootStart, rootSize}}, idRange{rootStart, rootSize}},
		{"one too few", []idRange{{rootStart, rootSize - 1}}, idRange{rootStart + rootSize/2, rootSize/2 - 1}},
		{"a container's", []idRange{{0, 65536}}, idRange{32768, 32768}},
		{"the largest of several", []idRange{{0, 1}, {1, 1000}, {5000, 10}}, idRange{501, 500}},
		{"hardly any", []idRange{{0, 7}}, idRange{0, 1}},
		{"one", []idRange{{0, 1}}, idRange{0, 1}},
		{"none", nil, idRange{0, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want, rootRange(test.own))
		})
	}
}

func TestReadIDMap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uid_map")
	require.NoError(t, os.WriteFile(path, []byte("         0       1000          1\n         1     100000      65536\n"), 0o600))
	got, err := readIDMap(path)
	require.NoError(t, err)
	require.Equal(t, []idRange{{0, 1}, {1, 65536}}, got)

	require.NoError(t, os.WriteFile(path, []byte("0 1000\n"), 0o600))
	_, err = readIDMap(path)
	require.ErrorContains(t, err, path)
	_, err = readIDMap(path + "/missing")
	require.ErrorContains(t, err, "user namespaces")
}

func TestChooseIDs(t *testing.T) {
	i, err := chooseIDs()
	require.NoError(t, err)
	require.Equal(t, os.Geteuid() != 0, i.rootless)
	require.Positive(t, i.size())
}

func TestExtents(t *testing.T) {
	wide := idRange{1 << 20, 100 * wideBlock}
	tests := []struct {
		name string
		ids  *ids
		r    idRange
		want []extent
	}{
		{"root's", &ids{}, wide, []extent{{0, 1 << 20, wideBlock}, {wideBlock, 1<<20 + wideBlock, 99 * wideBlock}}},
		{"root's third", &ids{root: 2 * wideBlock}, wide,
			[]extent{{0, 1<<20 + 2*wideBlock, wideBlock}, {wideBlock, 1 << 20, 2 * wideBlock}, {3 * wideBlock, 1<<20 + 3*wideBlock, 97 * wideBlock}}},
		{"root's last", &ids{root: 99 * wideBlock}, wide, []extent{{0, 1<<20 + 99*wideBlock, wideBlock}, {wideBlock, 1 << 20, 99 * wideBlock}}},
		{"root's third in one piece", &ids{root: 2 * wideBlock, oneExtent: true}, wide, []extent{{0, 1<<20 + 2*wideBlock, 98 * wideBlock}}},
		{"root's in a container", &ids{root: 2}, idRange{100, 11}, []extent{{0, 102, 2}, {2, 100, 2}, {4, 104, 7}}},
		{"root's only one", &ids{}, idRange{7, 1}, []extent{{0, 7, 1}}},
		{"a user's", &ids{rootless: true}, idRange{100000, 10}, []extent{{0, 1234, 1}, {1, 100000, 9}}},
		{"a user's only one", &ids{rootless: true}, idRange{1234, 1}, []extent{{0, 1234, 1}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.ids.uid, test.ids.gid = test.r, test.r
			require.Equal(t, test.want, test.ids.extents(test.r, 1234))
		})
	}
}

func TestPingGroups(t *testing.T) {
	wide := idRange{1 << 20, 100 * wideBlock}
	for _, test := range []struct {
		ids  *ids
		want string
	}{
		{hostIDs(), "0 2147483647"},
		{&ids{gid: idRange{7, 1}}, "0 0"},
		{&ids{uid: wide, gid: wide, root: 2 * wideBlock}, "65536 6553599"},
	} {
		require.Equal(t, test.want, (&Cell{ids: test.ids}).PingGroups())
	}
}
