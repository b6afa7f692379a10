# make test is the check of each change, as CI runs it. make matrix is all there is, before a
# release. The other targets are parts of them, and tools. SANDBOX_VM=0 leaves the QEMU guest out,
# on a machine that can't have one.

GO         ?= go
BENCHTIME  ?= 2s
FUZZTIME   ?= 5s
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
WALLS       = builtin runc crun systemd-nspawn lxc
MODULES     = . image queue docker compose examples bench
ROOT        = github.com/cellkit/sandbox
VMTEST      = umask 022 && $(GO) run ./internal/vmtest

.PHONY: test matrix deps vet tidy release-check examples browser test-host walls test-vm vm race bench fuzz

test: deps vet fuzz examples
	@echo "== tests"
	@$(VMTEST)

matrix: FUZZTIME = 2m
matrix: deps vet fuzz examples
	@echo "== tests: all configurations"
	@$(VMTEST) matrix

# The guest sees to its own packages (internal/vmtest/guest.sh).
deps:
	@echo "== packages that the tests need"
	@internal/vmtest/install.sh gcc libc6-dev python3 php-cli busybox-static bubblewrap uidmap mmdebstrap umoci openjdk-17-jre-headless nodejs redis-server runc crun systemd-container lxc

# Builds all packages of all modules and vets their tests, for each system. Systems other than Linux
# have the whole API, and every call fails there: TestUnsupported, which is linked too. bench uses a
# part of runc that needs cgo, and so a compiler for arm64.
vet:
	@for system in linux/amd64 linux/arm64 darwin/arm64 windows/amd64; do for m in $(MODULES); do \
		if [ $$system/$$m = linux/arm64/bench ]; then continue; fi; echo "== vet: $$system $$m"; \
		(cd $$m && export GOOS=$${system%/*} GOARCH=$${system#*/} && if [ $$system != "$$($(GO) env GOHOSTOS)/$$($(GO) env GOHOSTARCH)" ]; then export CGO_ENABLED=0; fi && \
		$(GO) build ./... && $(GO) vet ./...) || exit 1; done; done
	@echo "== vet: without cgo"; CGO_ENABLED=0 $(GO) vet ./...
	@for os in darwin windows; do for m in . pool function service image compose; do (cd $$m && GOOS=$$os $(GO) test -c -o /dev/null .) || exit 1; done; done
	@echo "== vet: what runs after a clone fits its stack, also as debuggers want it compiled"
	@for arch in amd64 arm64; do CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -gcflags='all=-N -l' -o /dev/null ./cmd/sandbox || exit 1; done
	@for m in $(MODULES); do echo "== staticcheck: $$m"; (cd $$m && $(GO) run $(STATICCHECK) ./...) || exit 1; done

# go mod tidy can't find versions of these modules that are not published yet.
tidy:
	@for m in $(MODULES); do (cd $$m && export GOWORK=off && { [ $$m = . ] || $(GO) mod edit -replace $(ROOT)=../ -replace $(ROOT)/image=../image -replace $(ROOT)/queue=../queue -replace $(ROOT)/compose=../compose; } && \
		$(GO) mod tidy; status=$$?; $(GO) mod edit -dropreplace $(ROOT) -dropreplace $(ROOT)/image -dropreplace $(ROOT)/queue -dropreplace $(ROOT)/compose; exit $$status) || exit 1; done

# make release-check VERSION=v0.1.0: whether the tags VERSION and image/VERSION may be made (docs/VERSIONING.md)
release-check:
	@internal/release-check.sh $(VERSION)

examples:
	@echo "== examples"
	@cd examples && $(GO) test -count=1 ./...

# The notebook's page in headless Chromium, which is too large a package for each change.
browser:
	@internal/vmtest/install.sh chromium-headless-shell
	@cd examples && $(GO) test -count=1 -tags browser -run TestBrowser ./notebook

test-host:
	@$(VMTEST) host

# The black-box tests and attacks in cells of each other wall (docs/WALLS.md), as root. It takes long.
walls: deps
	@for w in $(WALLS); do echo "== cells by $$w"; (export SANDBOX_TEST_WALL=$$w SANDBOX_TEST_TIMEOUT=30m; $(VMTEST) -pkg ./internal/e2e/... host) || exit 1; done

test-vm:
	@$(VMTEST) guests

# make vm CMD='uname -r': a shell command in the guest
vm:
	@internal/vmtest/guest.sh sh -c '$(subst ','\'',$(value CMD))'

race:
	$(GO) test -race -count=1 . ./pool ./function ./internal/run ./internal/e2e/...

bench:
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) . ./internal/run ./internal/e2e

# Each target for FUZZTIME, one per CPU at a time. A worker is killed at the end, and leaves what it
# has in its temporary directory. Before Go 1.27 the go command may fail when the time is over, with
# "context deadline exceeded" and no failing input (golang/go#75804).
fuzz:
	@echo "== fuzz targets, $(FUZZTIME) each"
	@TMPDIR=$$(mktemp -d) && export TMPDIR && trap 'rm -rf "$$TMPDIR"' EXIT && \
		for m in . image queue compose; do (cd $$m && for p in $$($(GO) list ./...); do $(GO) test -list '^Fuzz' $$p | sed -n "s|^Fuzz|$$m $$p &|p"; done); done | \
		xargs -P "$$(nproc)" -L 1 sh -c 'out=$$(cd $$1 && $(GO) test -run "^$$" -fuzz "^$$3\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x -parallel 1 $$2 2>&1) || { ! echo "$$out" | grep -q "Failing input" && echo "$$out" | grep -qx "    context deadline exceeded"; } && \
		echo "ok    $$2 $$3  $$(echo "$$out" | sed -n "s/.*\(execs: [0-9]*\).*/\1/p" | tail -n 1)" || { echo "$$out"; exit 255; }' sh
