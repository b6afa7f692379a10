package spec

import (
	"fmt"

	"github.com/cellkit/sandbox/internal/fault"
)

// Image is a root and what an image says of how to run a command in it.
type Image struct {
	Name     string   // for errors
	Layers   []string // directories, the lowest first
	User     string   // as the image has it
	UserErr  error    // why a run can't have it
	UID, GID int
	Groups   []int    // supplementary ones, where the run can have them
	Dir      string   // working directory
	Dirs     []string // made where the root lacks them, for the user
	Writable int64    // bytes for changes to the root, where the kernel can keep them
}

// SetImage sets what an image says. Errors name the image where it is to blame, not an option.
func (s *Spec) SetImage(img Image) {
	name := "image " + img.Name
	n, r := &s.Namespaces, &s.Root
	r.Rootfs, r.Image, r.Dirs = Rootfs{Layers: img.Layers, KeepsIDs: true}, name, img.Dirs
	r.SetWritable(img.Writable)
	r.IfCan = true
	n.UID, n.GID, n.Groups = img.UID, img.GID, img.Groups
	n.Image = ImageUser{Field: name + ": config field User: " + img.User, Groups: true}
	if img.UserErr != nil {
		n.Image.Err = fmt.Errorf("%w", img.UserErr) // which can be compared, whatever the error is
	}
	s.Command.Dir, s.Command.DirOf = img.Dir, name
}

// SetNoCommand takes the command away, and has the image's reason for that reported.
func (s *Spec) SetNoCommand(image string, why error) {
	s.Command.Argv, s.Command.Missing = nil, fault.Subject{Option: "WithCommand", Image: "image " + image}.Wrong("%w", why)
}

// ImageUser says that a run's user is an image's.
type ImageUser struct {
	Field  string // the image and its field
	Err    error  // why there is no such user
	Groups bool   // those of the run are the user's, which has them where that is possible
}

// subject is what errors about the user name.
func (n *Namespaces) subject() fault.Subject {
	return fault.Subject{Option: "WithUser", Image: n.Image.Field}
}

func (u *ImageUser) remedy() string {
	if u.Field == "" {
		return "other ids"
	}
	return "WithUser of other ids"
}

// maxID is the largest id that a run can have. That of nobody, whom images name, is one as any
// other in a user namespace.
func (n *Namespaces) maxID() int {
	if n.Image.Field != "" && !n.HostIDs {
		return MaxID + 1
	}
	return MaxID
}
