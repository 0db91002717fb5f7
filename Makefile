# The menu. Each target is one line that calls cargo or a task of xtask; the logic is there, in Rust.
# ORB8_REQUIRE=all turns every skipped test of `make test` into a failure.

.DEFAULT_GOAL := help
XTASK := cargo xtask

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## Install what a build and the tests need; says what and why
	@$(XTASK) setup

.PHONY: verify-setup
verify-setup: ## Only say what is there and what is missing
	@$(XTASK) verify-setup

.PHONY: build
build: ## Build target/release/{orb8,orb8-agent}, the kernel programs included
	cargo build --release --package orb8 --package orb8-agent

.PHONY: build-agent
build-agent: ## Build target/release/orb8-agent only
	cargo build --release --package orb8-agent

.PHONY: demo
demo: setup ## A cluster of namespaces, real packets, an agent a node, and what orb8 shows
	cargo build --workspace
	@target/debug/demo

.PHONY: test
test: setup ## Every test, also those that need root and a real kernel
	@$(XTASK) test

.PHONY: smoke-test
smoke-test: setup ## Probes, traffic and command line on this kernel, without Kubernetes
	@$(XTASK) smoke-test

.PHONY: e2e-test
e2e-test: setup ## A simulated cluster: pods, Services, an API server, an agent on every node
	@$(XTASK) e2e-test

.PHONY: vm-test
vm-test: setup ## The kernel tests on Debian's 5.10, 6.1, 6.12 and newest kernels, in QEMU
	@$(XTASK) vm-test

.PHONY: bench
bench: setup build ## Measure cost and speed; writes target/bench.json (BENCH="--quick tc_ veth" for less)
	cargo bench --quiet --package orb8-agent --bench bench -- $(BENCH)

.PHONY: soak
soak: setup ## Overload an agent in every way for ten minutes (SOAK="--minutes 60 --only steady", SOAK=--quick)
	cargo build --workspace
	@target/debug/soak $(SOAK)

.PHONY: lint
lint: setup ## Formatting, clippy, documentation; cargo-deny where it is installed
	@$(XTASK) lint

.PHONY: clippy
clippy: ## Only clippy
	cargo clippy --workspace --all-targets -- --deny warnings

.PHONY: fmt
fmt: ## Format every file
	@$(XTASK) fmt

.PHONY: generate
generate: ## Write generated files anew: types of the .proto files, references
	@$(XTASK) generate

.PHONY: run-agent
run-agent: setup build ## Run the agent on this host, in the foreground
	target/release/orb8-agent

.PHONY: fuzz
fuzz: ## Fuzz the header parser for a minute; needs rustup's nightly and cargo-fuzz
	@$(XTASK) fuzz

.PHONY: magic
magic: demo ## The same as demo

.PHONY: magic-local
magic-local: demo ## The same as demo
