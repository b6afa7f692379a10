package program

// Places in a cell that programs refer to.
const (
	// CellRoot is the directory over which a run mounts its root before it moves there.
	CellRoot = "/cell/root"
	// CellChanges is where a run mounts the file system that takes its changes.
	CellChanges = "/cell/scratch"
	// CellTemplates holds assembled roots, a directory each.
	CellTemplates = "/cell/templates"
	// CellStaging is where a template is assembled before it gets its place.
	CellStaging = "/cell/staging"
	// CellEmpty is a directory in which nothing ever is, to cover others with.
	CellEmpty = "/cell/empty"
	// CellControllers is a file like /proc/cgroups of older kernels on a machine with cgroup
	// v2, to cover that of newer ones with: it leaves out controllers that are not built for
	// v1, and older JVMs take all limits to be switched off if memory or cpuset is missing
	// (JDK-8347811).
	CellControllers = "/cell/cgroups"
)

// LibraryDir is where a run that executes this program itself has the libraries of that: a
// directory where no run mounts a file system of its own.
const LibraryDir = "/lib"

// LoaderVar is the variable by which the dynamic loader knows of such a directory: ld.so(8).
const LoaderVar = "LD_LIBRARY_PATH"
