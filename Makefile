# shiplog: "make help" lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= dev
ARCH    ?= $(shell $(GO) env GOARCH)
# Where images are pushed and pulled from, as registry.example.com/team. Without it they go to the local test cluster's registry.
REGISTRY ?=
# A cluster that you already have. Without it the local test cluster is used.
KUBECONFIG ?=

CLUSTER := $(GO) run ./tests/cluster
STATIC  := CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '-s -w'

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Show the whole journey on a real cluster: the local one, or KUBECONFIG=… REGISTRY=… for yours.
	@KUBECONFIG='$(KUBECONFIG)' REGISTRY='$(REGISTRY)' tests/demo/demo.sh

.PHONY: build
build: ## Build the binaries into bin/.
	@mkdir -p bin
	$(STATIC) -o bin/webhook ./webhook
	$(STATIC) -o bin/backend ./backend/cmd/backend
	$(STATIC) -o bin/shipper ./shipper
	$(STATIC) -o bin/tee ./shipper/tee
	$(GO) build -trimpath -o bin/shiplog ./backend/cmd/shiplog
	@ln -sf shiplog bin/kubectl-shiplog
	@ln -sf shiplog bin/tkn-shiplog
	@ln -sf shiplog bin/kubectl_complete-shiplog

.PHONY: images
images: build ## Build the images without a container engine and push them to REGISTRY.
	@test -n '$(REGISTRY)' || { echo 'images: name your registry, as in: make images REGISTRY=registry.example.com/shiplog' >&2; exit 1; }
	@manifests/push-image.sh '$(REGISTRY)/shiplog-webhook:$(VERSION)' '$(ARCH)' /webhook bin/webhook
	@manifests/push-image.sh '$(REGISTRY)/shiplog-backend:$(VERSION)' '$(ARCH)' /backend bin/backend
	@manifests/push-image.sh '$(REGISTRY)/shiplog-shipper:$(VERSION)' '$(ARCH)' /shipper bin/shipper bin/tee

.PHONY: release
release: ## Write bin/shiplog.yaml, everything to install with the images of REGISTRY. OVERLAY=openshift for OpenShift.
	@test -n '$(REGISTRY)' || { echo 'release: name your registry, as in: make release REGISTRY=registry.example.com/shiplog' >&2; exit 1; }
	@mkdir -p bin
	@manifests/render.sh '$(or $(OVERLAY),base)' '$(REGISTRY)' '$(VERSION)' > bin/shiplog.yaml
	@echo 'wrote bin/shiplog.yaml'

.PHONY: test
test: ## Everything: static checks, unit, integration against real S3 servers, end to end on the local cluster.
	@tests/run.sh all

.PHONY: test-unit
test-unit: ## Static checks, unit and integration tests.
	@tests/run.sh unit

.PHONY: test-e2e
test-e2e: ## End-to-end tests on the local cluster.
	@tests/run.sh e2e

.PHONY: test-tekton
test-tekton: ## Tekton's own tests, with shiplog and without. RUN=regexp, FLAGS=-help.
	@$(CLUSTER) build tekton-tests
	@$(CLUSTER) up
	@$(GO) run ./tests/tekton -run '$(or $(RUN),.)' $(FLAGS)

.PHONY: fuzz
fuzz: ## Each fuzz test for FUZZTIME (30s).
	@tests/fuzz.sh '$(or $(FUZZTIME),30s)'

.PHONY: mutate
mutate: ## Change the code of PKG in small ways, and list what no test notices. FLAGS=-help.
	@$(GO) run ./tests/mutate $(FLAGS) $(PKG)

.PHONY: bench
bench: ## Measure beside what else there is, and write docs/benchmarks.md. RUN=ship for one part alone.
	@$(CLUSTER) build bench
	@$(GO) test -tags bench -count=1 -timeout 0 -v -run 'TestBench/$(or $(RUN),.*)' ./tests/bench

.PHONY: loss-budget
loss-budget: ## Break everything that the loss budget names, and write what was lost to docs/loss-budget.md.
	@$(GO) run ./tests/loss

.PHONY: cluster-up
cluster-up: ## Build (first time: many minutes) and start the local cluster.
	$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## Stop the local cluster and leave nothing behind.
	$(CLUSTER) down

.PHONY: cluster-status
cluster-status: ## Say how each part of the local cluster is.
	$(CLUSTER) status
