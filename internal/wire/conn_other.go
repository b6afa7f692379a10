//go:build !linux

package wire

import (
	"errors"
	"os"
)

// Conn exists only on Linux.
type Conn struct{}

func Pair(int64) (*Conn, *os.File, error)           { return nil, nil, errors.ErrUnsupported }
func NewConn(*os.File, int64) *Conn                 { return nil }
func (*Conn) Send(Message) error                    { return errors.ErrUnsupported }
func (*Conn) Receive(int, ...Kind) (Message, error) { return Message{}, errors.ErrUnsupported }
func (*Conn) HangUp()                               {}
func (*Conn) Quiet() bool                           { return false }
func (*Conn) Close() error                          { return errors.ErrUnsupported }

func discard(f *os.File)       { f.Close() }
func checkFile(*os.File) error { return nil }
