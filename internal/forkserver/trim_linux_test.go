package forkserver

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpareOf(t *testing.T) {
	all := []mapping{
		{span{0x1000, 0x2000}, "fe:00 7", "/host"}, // the binary
		{span{0x2000, 0x3000}, "fe:00 7", "/host"},
		{span{0x3000, 0x9000}, "", ""}, // its zeroed data
		{span{0x9000, 0xa000}, "", "[heap]"},
		{span{0x10000, 0x20000}, "", ""},            // Go's heap
		{span{0x30000, 0x31000}, "", ""},            // holds an address in keep
		{span{0x31000, 0x32000}, "fe:00 8", "/lib"}, // a library
		{span{0x32000, 0x33000}, "", ""},            // its zeroed data
		{span{0x40000, 0x41000}, "", "[vdso]"},
		{span{0x50000, 0x60000}, "", "[stack]"},
	}
	want := []span{{0x9000, 0xa000}, {0x10000, 0x20000}, {0x31000, 0x32000}, {0x32000, 0x33000}, {0x40000, 0x41000}, {0x50000, 0x60000}}
	require.Equal(t, want, spareOf(all, 0x1800, []uintptr{0x30010}))
	require.NotContains(t, spareOf(all, 0x1800, []uintptr{0x30010, 0x50010}), span{0x50000, 0x60000})
	all[2].name = "[heap]" // as before Linux 6.6
	require.Equal(t, want, spareOf(all, 0x1800, []uintptr{0x30010}))
}

// What a clone needs is kept in the mappings of this process, too.
func TestSpareKeeps(t *testing.T) {
	kept := new([1 << 20]byte)
	address := reflect.ValueOf(kept).Pointer()
	spared, err := spare(address)
	require.NoError(t, err)
	code := reflect.ValueOf(serve).Pointer()
	for _, s := range spared {
		require.False(t, s.contains(address), "memory to keep")
		require.False(t, s.contains(code), "the binary")
	}
	all, err := mappings()
	require.NoError(t, err)
	require.NotEmpty(t, all)
	require.Less(t, len(spared), len(all))
}
