package main

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestJudge has programs that add two numbers, and programs that do something else.
func TestJudge(t *testing.T) {
	const head = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n#include <fcntl.h>\n#include <sys/socket.h>\n#include <netinet/in.h>\n#include <arpa/inet.h>\n"
	const add = "int a, b; if (scanf(\"%d %d\", &a, &b) != 2) return 1; printf(\"%d\\n\", a + b);"
	for name, test := range map[string]struct{ source, verdict string }{
		"right":              {head + "int main() {" + add + "}", "accepted"},
		"wrong":              {head + "int main() { puts(\"6\"); }", "wrong answer"},
		"silent":             {head + "int main() {}", "wrong answer"},
		"no program":         {"this is no C", "compilation error"},
		"crash":              {head + "int main() { int *p = 0; *p = 1; }", "runtime error"},
		"failure":            {head + "int main() { return 3; }", "runtime error"},
		"loop":               {"int main() { for (;;); }", "time limit exceeded"},
		"sleep":              {head + "int main() { sleep(1000); }", "time limit exceeded"},
		"memory":             {head + "int main() { for (;;) memset(malloc(1 << 20), 1, 1 << 20); }", "memory limit exceeded"},
		"output":             {head + "int main() { for (;;) puts(\"flood\"); }", "output limit exceeded"},
		"fork bomb":          {head + "int main() { for (;;) if (fork() < 0) for (;;); }", "time limit exceeded"},
		"leaves a process":   {head + "int main() { if (fork() == 0) { setsid(); sleep(1000); } " + add + "}", "accepted"},
		"reads the host":     {head + "int main() { return open(\"/etc/shadow\", O_RDONLY) >= 0 || open(\"/root\", O_RDONLY) >= 0 || open(\"/usr\", O_RDONLY) >= 0 ? 0 : 9; }", "runtime error"},
		"reads the source":   {head + "int main() { return open(\"/submission/main.c\", O_RDONLY) >= 0 ? 0 : 9; }", "runtime error"},
		"changes itself":     {head + "int main() { return open(\"/submission/main\", O_WRONLY) >= 0 || open(\"/proc/self/exe\", O_WRONLY) >= 0 ? 0 : 9; }", "runtime error"},
		"calls home":         {head + "int main() { struct sockaddr_in a = {AF_INET, htons(53)}; a.sin_addr.s_addr = inet_addr(\"1.1.1.1\"); return connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&a, sizeof a) ? 9 : 0; }", "runtime error"},
		"includes a secret":  {"#include \"/etc/shadow\"\nint main() {}", "compilation error"},
		"includes no end":    {"#include \"/dev/zero\"\nint main() {}", "compilation error"},
		"kills the compiler": {"#define A(x) x x x x x x x x x x\nint main() { A(A(A(A(A(A(A(A(A(A(;)))))))))) }", "compilation error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			verdict, detail, err := judge(ctx, []byte(test.source), []byte("19 23\n"), []byte("42\n"))
			require.NoError(t, err)
			require.Equal(t, test.verdict, verdict, "%s", detail)
		})
	}
}
