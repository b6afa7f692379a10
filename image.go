package sandbox

import "github.com/cellkit/sandbox/internal/hook"

// What package image says of an image in place of options, and what errors name then.

// imageUser says that a run's user is an image's.
type imageUser struct {
	field  string // the image and its field
	err    error  // why there is no such user
	groups bool   // those of the run are the user's, which has them where that is possible
}

// subject is what errors about the user name.
func (n *namespaceConfig) subject() subject { return subject{"WithUser", n.ofImage.field} }

func (u *imageUser) remedy() string {
	if u.field == "" {
		return "other ids"
	}
	return "WithUser of other ids"
}

// maxID is the largest id that a run can have. That of nobody, whom images name, is one as any
// other in a user namespace.
func (n *namespaceConfig) maxID() int {
	if n.ofImage.field != "" && !n.hostIDs {
		return maxID + 1
	}
	return maxID
}

func init() {
	hook.ImageOption = func(img hook.Image) any {
		return Option(func(c *config) {
			name := "image " + img.Name
			n, r := &c.namespace, &c.root
			r.rootfs, r.ofImage, r.dirs = LayersRootfs(img.Layers...), name, img.Dirs
			r.writable, r.upper, r.hasUpper, r.ifCan = &img.Writable, nil, false, true
			n.uid, n.gid, n.groups = img.UID, img.GID, img.Groups
			n.ofImage = imageUser{field: name + ": config field User: " + img.User, err: img.UserErr, groups: true}
			c.dir, c.dirOf = img.Dir, name
		})
	}
	hook.NoCommand = func(image string, why error) any {
		err := subject{"WithCommand", "image " + image}.wrong("%w", why)
		return Option(func(c *config) { c.command, c.noWhy = nil, err })
	}
}
