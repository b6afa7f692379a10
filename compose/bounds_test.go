//go:build linux

package compose

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/stretchr/testify/require"
)

// doubling returns variables, or anchors, each of which is the one before twice.
func doubling(n int, first, next string) string {
	var b strings.Builder
	b.WriteString(first)
	for i := range n {
		fmt.Fprintf(&b, next, i+1, i, i)
	}
	return b.String()
}

// Small files that say large things are refused, soon and in little memory.
func TestGrowth(t *testing.T) {
	const tooMuch, values = "more than 64 MiB", "more than 100000 values"
	variables := doubling(60, "A0=0123456789\n", "A%d=${A%d}${A%d}\n")
	long := strings.Repeat("x", 500<<10)
	chain := map[string]string{"compose.yaml": "include: [part/s0.yaml]", ".env": doubling(90000, "", "A%[1]d=\n")}
	for i := range 20 {
		chain[fmt.Sprintf("part/s%d.yaml", i)] = fmt.Sprintf("include: [s%d.yaml]", i+1)
	}
	chain["part/s20.yaml"] = base
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"copies of variables":    {chain, tooMuch},
		"variables of .env":      {map[string]string{".env": variables}, tooMuch},
		"variables of env_file":  {map[string]string{"compose.yaml": base + "    env_file: x.env", "x.env": variables}, tooMuch},
		"quoted variables":       {map[string]string{".env": doubling(60, "A0=0123456789\n", "A%d=\"${A%d}\n$A%d\"\n")}, tooMuch},
		"defaults of variables":  {map[string]string{".env": doubling(60, "A0=0123456789\n", "A%d=${X:-${A%d}${A%d}}\n")}, tooMuch},
		"a variable many times":  {map[string]string{".env": "A=" + long, "compose.yaml": base + "    command: '" + strings.Repeat("$A ", 200) + "'"}, tooMuch},
		"a variable as value":    {map[string]string{".env": "A=" + long, "compose.yaml": base + "    command: [" + strings.Repeat("$A,", 200) + "]"}, tooMuch},
		"many files":             {map[string]string{"x.env": "A=" + long, "compose.yaml": "services:\n" + services(200, "    env_file: x.env\n")}, tooMuch},
		"many secrets":           {map[string]string{"s": long, "compose.yaml": "secrets: {s: {file: s}}\nservices:\n" + services(200, "    secrets: [s]\n")}, tooMuch},
		"many environments":      {map[string]string{".env": "A=" + long, "compose.yaml": "services:\n" + services(200, "    environment: [A]\n")}, tooMuch},
		"nested defaults":        {map[string]string{"compose.yaml": base + "    command: '" + strings.Repeat("${X:-", 50000) + strings.Repeat("}", 50000) + "'"}, "too many variables"},
		"defaults after another": {map[string]string{".env": "A=" + strings.Repeat("${X:-}", 50000)}, "too many variables"},
		"anchors of lists":       {map[string]string{"compose.yaml": doubling(60, "x-a0: &a0 [x]\n", "x-a%d: &a%[1]d [*a%d, *a%d]\n") + base}, values},
		"anchors of mappings":    {map[string]string{"compose.yaml": doubling(60, "x-a0: &a0 {x: y}\n", "x-a%d: &a%[1]d {l: *a%d, r: *a%d}\n") + base}, values},
		"merges":                 {map[string]string{"compose.yaml": doubling(60, "x-a0: &a0 {x: y}\n", "x-a%d: &a%[1]d {<<: [*a%d, *a%d]}\n") + base}, values},
		"anchors of text":        {map[string]string{"compose.yaml": "x-a: &a " + long + "\nx-b: [" + strings.Repeat("*a,", 10000) + "]\n" + base}, tooMuch},
		"an anchor in itself":    {map[string]string{"compose.yaml": "x-a: &a [*a]\n" + base}, "compose.yaml"},
		"values in one another":  {map[string]string{"compose.yaml": "x-a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "\n" + base}, "in one another"},
		"many values":            {map[string]string{"compose.yaml": "x-a: [" + strings.Repeat("1,", 200000) + "]\n" + base}, values},
		"extends":                {map[string]string{"compose.yaml": "services:\n  web: {image: x, command: [" + strings.Repeat("1,", 10000) + "]}\n" + services(1000, "    extends: {service: web}\n")}, values},
		"extends by a variable":  {map[string]string{".env": "W=web", "compose.yaml": "services:\n  web: {image: x, command: [" + strings.Repeat("1,", 10000) + "]}\n" + services(1000, "    extends: $W\n")}, values},
		"extends of ranges":      {map[string]string{"compose.yaml": "services:\n  web: {image: x, ports: [1-65535]}\n" + services(5, "    extends: web\n")}, tooMuch},
		"extends of variables":   {map[string]string{".env": "A=" + long, "compose.yaml": "services:\n  web: {image: x, command: [" + strings.Repeat("$A,", 40) + "]}\n" + services(10, "    extends: web\n")}, tooMuch},
		"a tag on a key":         {map[string]string{"compose.yaml": "services:\n  web: {!x image: x, command: [" + strings.Repeat("1,", 1000) + "]}\n" + services(300, "    extends: web\n")}, values},
		"a value in many braces": {map[string]string{".env": "A=" + long[:60<<10], "compose.yaml": base + "    command: '" + strings.Repeat("${A-}", 1000) + "'"}, "too many variables"},
		"a space of Unicode":     {map[string]string{".env": "A=\u2003\"\n" + variables}, tooMuch},
		"ranges of ports":        {map[string]string{"compose.yaml": base + "    ports: [" + strings.Repeat("'1-65535:1-65535',", 10000) + "]"}, tooMuch},
		"included variables":     {map[string]string{".env": "A=" + long, "compose.yaml": "include: [a.yaml]", "a.yaml": "services:\n" + services(5000, "    environment: [A]\n")}, tooMuch},
		"included secrets":       {map[string]string{".env": "A=" + long, "compose.yaml": "include: [a.yaml]", "a.yaml": base + "secrets:\n" + strings.ReplaceAll(services(5000, ""), "image: x", "environment: A")}, tooMuch},
		"escapes":                {map[string]string{"compose.yaml": "x-a: &a '" + strings.Repeat("$", 500<<10) + "'\nx-b: [" + strings.Repeat("*a,", 100) + "]\n" + base}, "too many variables"},
		"included escapes":       {map[string]string{".env": "A='" + strings.Repeat("$", 200<<10) + "'", "compose.yaml": "include: [a.yaml]", "a.yaml": "services:\n" + services(200, "    environment: [A]\n")}, "too many variables"},
		"many fields":            {map[string]string{"compose.yaml": "services:\n" + services(5001, "")}, "line 2: more than 5000 fields"},
		"ways of dependencies":   {map[string]string{"compose.yaml": dependent(40, 2)}, "more ways from service to service"},
		"a way of dependencies":  {map[string]string{"compose.yaml": dependent(4000, 1)}, "more ways from service to service"},
		"a circle at their end":  {map[string]string{"compose.yaml": dependent(40, 2) + "  s39-2: {image: x, depends_on: [s39-2]}\n"}, "leads in a circle: s39-2 -> s39-2"},
		"ranges by a variable":   {map[string]string{".env": "P=1-65535", "compose.yaml": base + "    ports: [" + strings.Repeat("'$P',", 10000) + "]"}, tooMuch},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"compose.yaml": base}
			for name, content := range test.files {
				files[name] = content
			}
			dir := write(t, files)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin := time.Now()
			_, err := Load(dir, Environ())
			require.ErrorContains(t, err, test.want)
			require.Less(t, len(err.Error()), 4<<20, "not as long as what is refused")
			runtime.ReadMemStats(&after)
			require.Less(t, (after.TotalAlloc-before.TotalAlloc)>>20, uint64(2048), "MiB, in all")
			t.Log(time.Since(begin), (after.TotalAlloc-before.TotalAlloc)>>20, "MiB")
		})
	}
}

// services returns so many services with fields.
func services(n int, fields string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  s%d:\n    image: x\n%s", i, fields)
	}
	return b.String()
}

// dependent returns services in so many ranks, each of which depends on all of the rank before.
func dependent(ranks, each int) string {
	var b strings.Builder
	b.WriteString("services:\n")
	before := ""
	for i := range ranks {
		now := ""
		for j := range each {
			fmt.Fprintf(&b, "  s%d-%d: {image: x, depends_on: [%s]}\n", i, j, before)
			now += fmt.Sprintf("s%d-%d,", i, j)
		}
		before = now
	}
	return b.String()
}

// As many dependencies as projects have are none too many, and circles are found.
func TestDependencies(t *testing.T) {
	for _, content := range []string{dependent(15, 2), dependent(200, 1), dependent(2, 100)} {
		_, err := load(t, content)
		require.NoError(t, err)
	}
	_, err := load(t, "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [c]}\n  c: {image: x, depends_on: [b]}\n")
	require.ErrorContains(t, err, "depends_on leads in a circle: ")
	_, err = load(t, base+"  a: {image: x, depends_on: [b], profiles: [p]}\n  b: {image: x, depends_on: [a], profiles: [p]}\n")
	require.NoError(t, err, "who is not enabled has none")
	_, err = load(t, base+"  a: {image: x, depends_on: [b], profiles: [p]}\n  b: {image: x, depends_on: [a], profiles: [p]}\n", Only("a"))
	require.ErrorContains(t, err, "depends_on leads in a circle: ", "who is named is enabled")
}

// Variables are what compose-go makes of them.
func TestVariables(t *testing.T) {
	known := map[string]string{"HOME": "/home"}
	lookup := func(name string) (string, bool) { v, ok := known[name]; return v, ok }
	for _, text := range []string{
		"", "\n\n", "A=b", "A=b\n", "A = b # c\nB=$A", "# c\nA: b\n", "export A='$x'\nB=\"$A ${A}\"", "A=\"x\\\"y\nz\" # c\nB='a\\'b'\nC=${A:-${B}}",
		"HOME\nA=$HOME\n", "A=x\r\nB=\"y\"\r\nC=$A$B\r\n", "A=\nB=1", "A=$$x\nB=\\$x\nC=\"\\$x\"", "A='x'B=y\nC=z", "\uFEFFA=b", "A=#b\nB= #c\nC=\"#d\"",
		"A=b=c:d\nB: c=d", "A=\u00a0b\u0085\nB=c", "A=\"\\\\\"\nB=c", "a.b-c[0]=d", "A=${B:-x}\nB=y\nA2=$A", "A=\"${HOME}\n$HOME\"\nB=${A}",
		"A B=c", "A=b\n\n=c", "A=b\nB=\"c\nd", "A=b\n;=c", "A=${", "A=1\n\nB=${X:?is missing}", "A=1\nB='",
	} {
		want, wantErr := dotenv.ParseWithLookup(strings.NewReader(text+"\n"), lookup)
		got, err := newBudget().variables([]byte(text), known)
		if wantErr != nil {
			require.EqualError(t, err, wantErr.Error(), "%q", text)
			continue
		}
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	}
}

// compose-go writes nothing about version to the standard error, wherever the field is.
func TestVersion(t *testing.T) {
	for _, content := range []string{
		"version: '3'\n" + base, base + "version: '3.8'\n", "\"version\": '3'\n" + base, "{version: '3', services: {web: {image: x}}}", "{ x-ü: 1, 'version': '3', services: {web: {image: x}}}",
	} {
		f, err := parse("compose.yaml", []byte(content), newBudget())
		require.NoError(t, err)
		require.Equal(t, strings.Replace(content, "version", "x-versi", 1), string(f.content))
		_, err = load(t, content)
		require.NoError(t, err)
	}
}
