//go:build linux

package seccomp

// PathCall says which arguments of a system call name a file, and how. An argument that it does not
// have is -1.
type PathCall struct {
	Dir   int // a descriptor; without one a path is relative to the working directory
	Path  int
	Flags int // of open or of those that begin with AT_, as the call has them
	Mode  int // of access
	Use   PathUse
}

// MayBeEmpty reports whether the call has a flag with which it names no file by a path:
// AT_EMPTY_PATH.
func (c PathCall) MayBeEmpty() bool { return c.Flags >= 0 && (c.Use == Look || c.Use == Execute) }

// PathUse is what a call does with a file.
type PathUse int

// What calls do.
const (
	Look    PathUse = iota // at its attributes, or at whether it is there
	Link                   // at a symbolic link
	Open                   // as flags say
	OpenHow                // as a struct open_how says, to which Flags points
	Create                 // and write
	Write
	Enter
	Execute
	Add    // to a directory
	Remove // from a directory
)

// PathCalls are the calls that name a file by a path, and whose outcome depends on that alone. All
// architectures have some of them.
var PathCalls = map[string]PathCall{
	"open":       {-1, 0, 1, -1, Open},
	"openat":     {0, 1, 2, -1, Open},
	"openat2":    {0, 1, 2, -1, OpenHow},
	"creat":      {-1, 0, -1, -1, Create},
	"stat":       {-1, 0, -1, -1, Look},
	"lstat":      {-1, 0, -1, -1, Link},
	"newfstatat": {0, 1, 3, -1, Look},
	"statx":      {0, 1, 2, -1, Look},
	"access":     {-1, 0, -1, 1, Look},
	"faccessat":  {0, 1, -1, 2, Look},
	"faccessat2": {0, 1, 3, 2, Look},
	"readlink":   {-1, 0, -1, -1, Link},
	"readlinkat": {0, 1, -1, -1, Link},
	"chdir":      {-1, 0, -1, -1, Enter},
	"execve":     {-1, 0, -1, -1, Execute},
	"execveat":   {0, 1, 4, -1, Execute},
	"truncate":   {-1, 0, -1, -1, Write},
	"mkdir":      {-1, 0, -1, -1, Add},
	"mkdirat":    {0, 1, -1, -1, Add},
	"rmdir":      {-1, 0, -1, -1, Remove},
	"unlink":     {-1, 0, -1, -1, Remove},
	"unlinkat":   {0, 1, -1, -1, Remove},
}
