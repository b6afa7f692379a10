# make test is the check of each change, as CI runs it. make matrix is all there is, before a
# release. The other targets are parts of them, and tools. SANDBOX_VM=0 leaves the QEMU guest out,
# on a machine that can't have one.

GO         ?= go
BENCHTIME  ?= 2s
FUZZTIME   ?= 5s
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
WALLS       = builtin runc crun systemd-nspawn lxc docker
MODULES     = . image queue docker libvirt compose examples bench
PACKAGES    = $(1:%=./%/...)
# Where code depends on the processor, without what is large and does not.
ARM64       = . image docker libvirt compose
ROOT        = github.com/cellkit/sandbox
VMTEST      = umask 022 && $(GO) run ./internal/vmtest

.PHONY: test matrix deps vet tidy release-check examples docker browser services test-host walls test-vm vm race bench fuzz

test: deps vet fuzz examples docker
	@echo "== tests"
	@$(VMTEST)

matrix: FUZZTIME = 2m
matrix: ARM64 = $(filter-out bench,$(MODULES))
matrix: deps vet fuzz examples docker
	@echo "== tests: all configurations"
	@$(VMTEST) matrix
	@echo "== tests: a thousand tasks of a queue while servers and workers are killed"
	@cd queue && SANDBOX_QUEUE_TASKS=1000 $(GO) test -count=1 -timeout 40m -run '^TestCluster$$' .

# The guest sees to its own packages (internal/vmtest/guest.sh).
deps:
	@echo "== packages that the tests need"
	@internal/vmtest/install.sh gcc libc6-dev python3 php-cli busybox-static bubblewrap uidmap mmdebstrap umoci openjdk-17-jre-headless nodejs redis-server runc crun systemd-container lxc musl-tools

# Vets all packages with their tests. Systems other than Linux have the whole API, and every call
# fails there: TestUnsupported, which is linked too. bench is for Linux, with cgo.
vet:
	@echo "== vet"; $(GO) vet $(call PACKAGES,$(MODULES))
	@echo "== vet: linux/arm64"; CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) vet $(call PACKAGES,$(ARM64))
	@for system in darwin/arm64 windows/amd64; do echo "== vet: $$system"; (export CGO_ENABLED=0 GOOS=$${system%/*} GOARCH=$${system#*/} && \
		$(GO) vet $(call PACKAGES,$(filter-out bench,$(MODULES))) && \
		for p in . pool function service image compose; do $(GO) test -c -o /dev/null ./$$p || exit 1; done) || exit 1; done
	@echo "== vet: without cgo"; CGO_ENABLED=0 $(GO) vet ./...
	@echo "== vet: what runs after a clone fits its stack, also as debuggers want it compiled"
	@for arch in amd64 arm64; do CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -gcflags='all=-N -l' -o /dev/null ./cmd/sandbox || exit 1; done
	@echo "== staticcheck"; $(GO) run $(STATICCHECK) $(call PACKAGES,$(MODULES))

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

# As root alone: cells in containers of an engine of its own, which nothing is left of.
docker:
	@echo "== docker"
	@[ "$$(id -u)" != 0 ] || internal/vmtest/docker.sh engine $(GO) test -C docker -count=1 ./...

# The notebook's page in headless Chromium, which is too large a package for each change.
browser:
	@internal/vmtest/install.sh chromium-headless-shell
	@cd examples && $(GO) test -count=1 -tags browser -run TestBrowser ./notebook

# Services of Debian's packages that are too large for each change, and of images made of them: as
# root and as a user, in a guest and in a container, or where SERVICES_IN says.
SERVICES_IN ?= host host-user guest docker
services:
	@internal/vmtest/install.sh postgresql redis-server nginx-light etcd-server rabbitmq-server
	@export DOCKER_PACKAGES='postgresql-* tzdata redis-* nginx* etcd-server rabbitmq-server erlang-*'; \
		$(VMTEST) -pkg ./examples/services $(if $(RUN),-run '$(RUN)') $(SERVICES_IN)

test-host:
	@$(VMTEST) host

# The black-box tests and attacks in cells of each other wall (docs/WALLS.md), as root. It takes long.
# Docker has an engine of its own, libvirt (WALLS=libvirt) that of this machine.
walls: deps
	@for w in $(WALLS); do echo "== cells by $$w"; engine=; [ $$w != docker ] || engine='internal/vmtest/docker.sh engine'; \
		(export SANDBOX_TEST_WALL=$$w SANDBOX_TEST_TIMEOUT=30m; umask 022; $$engine $(GO) run ./internal/vmtest -pkg ./internal/e2e/... host) || exit 1; done

test-vm:
	@$(VMTEST) guests

# make vm CMD='uname -r': a shell command in the guest
vm:
	@internal/vmtest/guest.sh sh -c '$(subst ','\'',$(value CMD))'

race:
	$(GO) test -race -count=1 . ./pool ./function ./internal/run ./internal/e2e/...

bench:
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) . ./internal/run ./internal/e2e

fuzz:
	@echo "== fuzz targets, $(FUZZTIME) each"
	@internal/fuzz.sh $(FUZZTIME)
