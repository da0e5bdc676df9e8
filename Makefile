# MultiPaaS is built, tried and tested from here. `make help` lists what there is.
#
# Parts that take long are made by .ci/cached.sh: keyed by the contents of
# what they are made from, kept in ~/.cache/multipaas (MULTIPAAS_CACHE) for every clone on this
# machine. So targets are phony: make's comparison of times knows nothing.

SHELL       := /bin/sh
MAKEFLAGS   += --no-builtin-rules
.DEFAULT_GOAL := build

# The key that signs the payload; one is made if none is given.
PAYLOAD_KEY ?= .cache/payload.key
# The minor versions of Kubernetes that the payload carries, each from embed/kube.
KUBE        := 1.36
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export CGO_ENABLED := 0
cached  := .ci/cached.sh
payload := dist/payload

# Small programs are built the same in every clone, so that what is made of
# them is too. The large ones go without -trimpath: it is part of the key of every package
# in Go's build cache, and tests are built without it.
go-small := go build -trimpath -buildvcs=false -ldflags "-s -w" -o

# Suites of their own: they drive the built program from outside, and what runs
# in it the race detector, which would be in the tests alone, does not see.
suites  := /testing/(e2e|vm)(/|$$)

##@ Use it

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: all
all: build ## the same as build

.PHONY: up
up: deps build lab ## build, bring up a datacenter on this machine, deploy an app, print where it answers
	dist/lab up

.PHONY: down
down: lab ## take down what up has made, without a trace
	dist/lab down

##@ Build

.PHONY: deps
deps: ## install the Debian packages that building and testing need
	@.ci/deps.sh

.PHONY: build
build: elf payload ## build dist/multipaas, the one file
	@$(cached) -l dist/multipaas .cache/multipaas.elf .cache/payload .cache/keys/dist-payload.zip -- \
		.cache/payload pack --elf .cache/multipaas.elf --out dist/multipaas dist/payload.zip

.PHONY: payload
payload: payload-tool kube runtime init image-pause image-hello image-coredns image-machine image-storage ## make dist/payload.zip, the files that the one file carries
	@find $(payload) -type f -printf '%P %m %s\n' | LC_ALL=C sort >.cache/payload.list
	@$(cached) -l dist/payload.zip .cache/payload.list .cache/keys/dist-payload-* $(payload)/runtime/init .cache/payload $(PAYLOAD_KEY) -- \
		.cache/payload pack --zip --key $(PAYLOAD_KEY) --out dist/payload.zip $(payload)

.PHONY: elf
elf: payload-tool ## build the program without its payload
	@go build -buildvcs=false -o .cache/multipaas.elf -ldflags "-s -w -X main.version=$(VERSION) \
		-X github.com/multipaas/multipaas/embed/payload.linkedKeys=$$(.cache/payload key show $(PAYLOAD_KEY))" .

.PHONY: payload-tool
payload-tool: ## build what packs the payload, and make a key to sign it
	@mkdir -p .cache
	@$(go-small) .cache/payload ./embed/payload/cmd/payload
	@[ -e $(PAYLOAD_KEY) ] || .cache/payload key new $(PAYLOAD_KEY) >/dev/null

.PHONY: kube
kube: ## build Kubernetes (from nothing: 20 minutes)
	@for minor in $(KUBE); do \
		$(cached) $(payload)/kube/$$minor/kube embed/kube -- embed/kube/build.sh $(payload)/kube/$$minor/kube || exit 1; done

.PHONY: runtime
runtime: ## build what a machine runs: containerd, runc, CNI plugins
	@$(cached) .cache/runtime embed/runtime -- embed/runtime/build.sh .cache/runtime containers cni
	@$(cached) -l $(payload)/runtime/cni .cache/keys/.cache-runtime -- \
		sh -c 'mkdir -p $(payload)/runtime && cp -r --remove-destination .cache/runtime/. $(payload)/runtime/'

.PHONY: init
init: ## build process 1 of the machines
	@mkdir -p $(payload)/runtime
	@$(go-small) $(payload)/runtime/init ./embed/init

.PHONY: images
images: image-pause image-hello image-coredns image-machine image-storage ## make the images as OCI layouts

.PHONY: ociimage
ociimage: ## build what makes images
	@$(go-small) .cache/ociimage ./embed/images/cmd/ociimage

.PHONY: image-pause
image-pause: ociimage ## make the image that holds a pod's namespaces
	@$(go-small) .cache/pause ./embed/images/pause
	@$(cached) $(payload)/images/pause .cache/ociimage .cache/pause -- .cache/ociimage --out $(payload)/images/pause \
		--name multipaas.internal/pause:1 --file .cache/pause:/pause --entrypoint /pause --user 65535:65535

.PHONY: image-hello
image-hello: ociimage ## make the image of the small web app
	@$(go-small) .cache/hello ./embed/images/hello
	@$(cached) $(payload)/images/hello .cache/ociimage .cache/hello -- .cache/ociimage --out $(payload)/images/hello \
		--name multipaas.internal/hello:1 --file .cache/hello:/hello --entrypoint /hello --user 65532:65532 --port 8080/tcp

.PHONY: image-coredns
image-coredns: ociimage ## make the image of the cluster DNS
	@$(cached) .cache/dns embed/runtime -- embed/runtime/build.sh .cache/dns dns
	@$(cached) $(payload)/images/coredns .cache/ociimage .cache/keys/.cache-dns -- .cache/ociimage --out $(payload)/images/coredns \
		--name multipaas.internal/coredns:1 --file .cache/dns/coredns:/coredns --entrypoint /coredns --port 53/udp --port 53/tcp

root-scripts := embed/images/root.sh embed/images/trim.sh embed/images/sources.sh

.PHONY: image-machine
image-machine: ociimage ## make the root file system of the machines, from Debian packages
	@$(cached) .cache/machine.tar $(root-scripts) embed/images/machine -- embed/images/root.sh embed/images/machine .cache/machine.tar
	@$(cached) $(payload)/images/machine .cache/ociimage .cache/keys/.cache-machine.tar -- .cache/ociimage --out $(payload)/images/machine \
		--name multipaas.internal/machine:1 --root .cache/machine.tar --entrypoint /sbin/init

.PHONY: image-storage
image-storage: ociimage ## make the root file system that hosts' storage runs from, from Debian packages
	@$(cached) .cache/storage.tar $(root-scripts) embed/images/storage -- embed/images/root.sh embed/images/storage .cache/storage.tar
	@$(cached) $(payload)/images/storage .cache/ociimage .cache/keys/.cache-storage.tar -- .cache/ociimage --out $(payload)/images/storage \
		--name multipaas.internal/storage:1 --root .cache/storage.tar --entrypoint /sbin/init

.PHONY: vm-image
vm-image: ## make the disk of the virtual machines of testing/vm, from Debian packages
	@$(cached) .cache/vm testing/vm/root embed/images/sources.sh -- testing/vm/root/build.sh .cache/vm

.PHONY: vm-booted
vm-booted: vm-image ## boot the virtual machines of testing/vm once, and keep them as they are then
	@$(go-small) .cache/vm-boot ./testing/vm/cmd/boot
	@qemu-system-x86_64 --version >.cache/qemu.version
	@$(cached) .cache/vm-booted .cache/vm .cache/vm-boot .cache/qemu.version -- .cache/vm-boot .cache/vm .cache/vm-booted

.PHONY: lab
lab: ## build dist/lab, which makes hosts out of network namespaces
	@go build -buildvcs=false -o dist/lab ./testing/lab/cmd/lab

##@ Test

.PHONY: parts
parts:
	@go build -buildvcs=false -o .cache/parts ./testing/parts

.PHONY: test
test: parts ## everything the project tests, the way CI runs it: all of .ci/budget
	@.cache/parts

# What parts of the tests need. Those that testing/parts runs find it there, and leave
# it as it is: others run with it at the same time.
needs = $(if $(MULTIPAAS_BUILT),,$(1))

patience := $(if $(MULTIPAAS_LONG),60m,15m)

.PHONY: test-unit
test-unit: export MULTIPAAS_PAYLOAD := $(CURDIR)/$(payload)
test-unit: export MULTIPAAS_KUBE := $(CURDIR)/$(payload)/kube/$(lastword $(KUBE))/kube
test-unit: $(call needs,payload) ## the tests of each package (PKG=./modules/store/... for some, RUN=TestName for one)
	@if [ -n "$(PKG)" ]; then CGO_ENABLED=1 go test -race $(if $(RUN),-run '$(RUN)') $(PKG); else \
		CGO_ENABLED=1 go test -race -timeout $(patience) $$(go list ./... | grep -Ev '$(suites)'); fi

.PHONY: test-kube
# kubelet and plane not with the race detector: that builds Kubernetes once more, whole.
test-kube: ## the tests of embed/kube and embed/runtime
	@cd embed/kube && go test -timeout $(patience) ./... && CGO_ENABLED=1 go test -race ./budget ./guard
	@cd embed/runtime && CGO_ENABLED=1 go test -race ./dns/custom

.PHONY: test-e2e
test-e2e: $(call needs,build lab) ## whole datacenters on this machine, driven from outside (RUN=TestName for one)
	@go test -count 1 -timeout 40m $(if $(RUN),-run '$(RUN)') ./testing/e2e

# Each suite below leaves one line of counts in dist/counts, which is printed last.
counts := $(CURDIR)/dist/counts
suite   = rm -f $(counts)/$(1); MULTIPAAS_COUNTS=$(counts) go test -count 1 -timeout $(2) $(if $(RUN),-run '$(RUN)') $(3); \
	result=$$?; cat $(counts)/$(1) 2>/dev/null || echo "$(1): no counts: it ended early"; exit $$result

.PHONY: attack
attack: $(call needs,build lab) ## two hostile tenants on the same hosts: every attempt must fail
	@$(call suite,attacks,90m,./testing/e2e/attack)

.PHONY: faults
faults: $(call needs,build lab) ## kill -9 at every step, broken networks, full disks, torn files: nothing may be lost
	@$(call suite,faults,60m,./testing/e2e/faults)

.PHONY: leaks
leaks: $(call needs,build lab) ## create, deploy, delete, again and again: nothing may stay behind
	@$(call suite,leaks,90m,./testing/e2e/leaks)

.PHONY: test-vm
test-vm: $(call needs,build vm-booted) ## a server and a node on virtual machines with systemd and cgroup v2
	@$(call suite,vm,120m,./testing/vm)

.PHONY: test-storage
test-storage: $(call needs,build lab) ## volumes alone: claims, and bad days under a writer
	@$(call suite,storage,60m,./testing/e2e/storage)

.PHONY: test-long
test-long: export MULTIPAAS_LONG := 1
test-long: parts ## the long forms of the suites: hours, not minutes
	@.cache/parts deps build lab vm-booted test-unit test-kube attack faults leaks test-vm
	@$(MAKE) test-storage

FUZZTIME ?= 10m
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@testing/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: deps bench-deps bench-peers build lab ## numbers beside nginx, haproxy, stock Kubernetes and others (BENCH="-plot -only balancer,registry")
	@go build -buildvcs=false -o .cache/bench ./testing/bench
	@.cache/bench $(BENCH)

.PHONY: bench-deps
bench-deps: ## install the Debian packages that bench measures ours beside
	@.ci/deps.sh bench-packages

.PHONY: lint
# Not staticcheck over embed/kube: it reads all of Kubernetes from source for
# three small packages, 11 CPU minutes when its cache is empty.
lint: ## gofmt, the length of lines, go vet and staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not formatted; run make fmt:"; echo "$$out"; exit 1; }
	@.ci/lines.sh
	@$(cached) .cache/staticcheck testing/lint -- go build -C testing/lint -o $(CURDIR)/.cache/staticcheck honnef.co/go/tools/cmd/staticcheck
	@go vet ./...
	@.cache/staticcheck ./...
	@cd embed/kube && go vet ./...

.PHONY: fmt
fmt: ## format all Go files
	@gofmt -l -w $$(git ls-files '*.go')

.PHONY: bench-peers
bench-peers: ## build upstream's Kubernetes and etcd as processes of their own, to measure ours beside
	@$(cached) .cache/peers embed/kube/go.mod embed/kube/go.sum embed/kube/peers.sh embed/kube/flags.sh -- embed/kube/peers.sh .cache/peers

##@ Clean

.PHONY: clean
clean: ## remove what was built here; ~/.cache/multipaas stays
	rm -rf dist .cache
