//go:build linux && !peers

package main

func morePeers() []networkPeer { return nil }

func (b *bench) peers() []func() (subject, error) { return nil }
