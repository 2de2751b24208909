# What is built, run and tested here. `make` lists it.

# The components: the example, and those that the tests need.
GUESTS = greeter hostile nothing plain plain-p3
HOSTS = --workspace $(GUESTS:%=--exclude %)
SEEDS ?= 500
ROUNDS ?= 5
LARGE ?= yes

# Paths below are those of cargo's default directory.
unexport CARGO_TARGET_DIR

.PHONY: help setup build guests run test lint simulate bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: ## install what is missing, and nothing else
	@sh scripts/setup.sh

build: setup ## target/release/leasehold
	cargo build --locked --release

guests: setup ## target/components/*.wasm
	sh scripts/guests.sh $(GUESTS)

run: build guests ## the example, registered in a private etcd, until Ctrl-C
	target/release/leasehold run --dev guest-example/greeter.yaml

test: build guests ## every test, on a real etcd
	cargo test --locked --release $(HOSTS)

lint: setup ## formatting, clippy, documentation; warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --release $(HOSTS) --all-targets -- -D warnings
	sh scripts/guests.sh lint $(GUESTS)
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --release --no-deps $(HOSTS)

simulate: setup ## SEEDS=n seeds on the simulated etcd; SEED=n replays one
	cargo run --locked --release -p leasehold-scenarios --bin simulate -- $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

bench: setup ## the registrar beside the usual client, a line a figure; ROUNDS=n (5), LARGE=no leaves out 100,000
	@command -v go >/dev/null || { echo "bench: needs Go, for the peer: https://go.dev/dl, or apt-get install golang-go" >&2; exit 1; }
	cargo build --locked --release -p leasehold-bench
	cd tests/peers/usual-client && go build -trimpath -o ../../../target/peers/usual-client .
	target/release/bench --rounds $(ROUNDS) --large $(LARGE)

clean: ## remove what was built
	cargo clean
