# Targets to build, run and test. `make` lists them.

# The components: the examples, and those that the tests need.
GUESTS = greeter grpc-greeter hostile hostile-0-2 hostile-p3 library-p3 lookup lookup-p3 nothing plain plain-p3 program program-p3 raw
# The library for components is a crate of the host for its unit tests alone.
LIBRARY = leasehold-guest
HOSTS = --workspace $(GUESTS:%=--exclude %) --exclude $(LIBRARY)
# The runner takes minutes to optimise, and its unit tests need none of it.
UNITS = --config profile.release.package.leasehold-cli.opt-level=0
SEEDS ?= 500
ROUNDS ?= 5
SECONDS ?= 60
FUZZ = $(notdir $(basename $(wildcard fuzz/targets/*.rs)))
MINUTES ?= 10
LARGE ?= yes
PREFIX ?= /usr/local

# The etcd that tests run, instead of the one on the PATH: `make etcd`, then `make test ETCD=target/etcd/etcd`.
ifdef ETCD
export ETCD := $(abspath $(ETCD))
endif

# Paths below are those of cargo's default directory.
unexport CARGO_TARGET_DIR

.PHONY: help setup build guests clients examples install deb deb-test image deploy-tools manifests deploy-test deny book package dist run test registry-test etcd lint wasmtime-range monitoring simulate fuzz interop guests-all first-key bench bench-lease bench-serving bench-views bench-startup bench-many growth isolation clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: ## install what is missing, and nothing else
	@sh scripts/setup.sh

build: setup ## target/release/leasehold
	cargo build --locked --release

guests: setup ## target/components/*.wasm
	sh scripts/guests.sh $(GUESTS)

clients: setup ## target/clients: gRPC's own, which call components in the tests
	sh scripts/clients.sh

examples: setup ## the plugin in an embedder, and the registrar in a plain service
	# All three host crates at once, so that their dependencies are built as for the binary.
	cargo build --locked --release --examples

# The commit stands in the installed binary; a binary for tests does not depend on it.
install: guests ## the binary, man pages, completions, an example and systemd units; PREFIX=/usr/local DESTDIR=
	LEASEHOLD_COMMIT=$$(git rev-parse --short=12 HEAD 2>/dev/null || echo "not recorded") cargo build --locked --release
	PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" sh scripts/install.sh

# The files are those of `make install`.
deb: guests ## target/deb/leasehold_*.deb: the Debian package
	@command -v cargo-deb >/dev/null || { echo "deb: needs cargo-deb: cargo install cargo-deb --locked" >&2; exit 1; }
	@command -v dpkg-shlibdeps >/dev/null || { echo "deb: needs dpkg-shlibdeps: apt-get install dpkg-dev" >&2; exit 1; }
	LEASEHOLD_COMMIT=$$(git rev-parse --short=12 HEAD 2>/dev/null || echo "not recorded") cargo build --locked --release
	rm -rf target/deb/stage target/deb/*.deb
	PREFIX=/usr DESTDIR=target/deb/stage sh scripts/install.sh
	cargo deb --no-build --locked -p leasehold-cli --output target/deb/

deb-test: deb ## the package in an empty Debian, as root: installed, docs/first-service.md as printed, removed
	@command -v debootstrap >/dev/null || { echo "deb-test: needs debootstrap: apt-get install debootstrap" >&2; exit 1; }
	@test "$$(id -u)" = 0 || { echo "deb-test: needs root: an empty Debian is mounted, and the package installed there" >&2; exit 1; }
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin package
	unshare --mount --pid --fork --kill-child target/release/package

# podman writes the health check in Docker's format only.
ENGINE ?= $(firstword $(foreach engine,podman docker,$(shell command -v $(engine))))
image: guests ## the container image leasehold:VERSION, by podman or docker (ENGINE=)
	@test -n "$(ENGINE)" || { echo "image: needs podman or docker: apt-get install podman" >&2; exit 1; }
	LEASEHOLD_COMMIT=$$(git rev-parse --short=12 HEAD 2>/dev/null || echo "not recorded") cargo build --locked --release
	sh scripts/image.sh
	version=$$(target/release/leasehold -V | cut -d' ' -f2) && BUILDAH_FORMAT=docker $(ENGINE) build --tag "leasehold:$$version" \
		--file target/image/Containerfile --build-arg VERSION="$$version" --build-arg COMMIT="$$(git rev-parse HEAD 2>/dev/null)" target/image

# The programs of Kubernetes stand in a module of their own; their version is not in their sources.
deploy-tools:
	@command -v go >/dev/null || { echo "deploy: needs Go 1.26 or newer, which builds helm, kubectl and kube-apiserver: https://go.dev/dl" >&2; exit 1; }
	cd tests/deploy/kubernetes && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && \
		go build -trimpath -ldflags "-X k8s.io/component-base/version.gitVersion=$$version" -o ../../../target/deploy/bin/ tool
	cd tests/deploy && go build -trimpath -o ../../target/deploy/bin/ .

manifests: deploy-tools ## deploy/kubernetes/manifests, rendered from the chart
	target/deploy/bin/deploy manifests

deploy-test: build guests deploy-tools ## the chart on a real API server, the Nomad job, the image in podman; PARTS="kubernetes nomad image"
	python3 -m venv target/deploy/python
	target/deploy/python/bin/pip install --quiet --disable-pip-version-check --requirement tests/deploy/requirements.txt
	sh scripts/image.sh
	target/deploy/bin/deploy $(PARTS)

# Versions that occur twice are looked for in what is shipped, the binary and the libraries in it.
deny: ## the dependencies: licences, known faults, origins, versions that occur twice; deny.toml has the exceptions
	@command -v cargo-deny >/dev/null || { echo "deny: needs cargo-deny: cargo install cargo-deny --locked" >&2; exit 1; }
	cargo deny --locked check advisories licenses sources
	cargo deny --locked --exclude-dev --manifest-path host/runner/Cargo.toml --config deny.toml check bans

book: ## target/book/html: the pages of docs as a site with search; every link in it is checked
	sh scripts/book.sh

package: setup ## the published crates as packages, with a list of what is in them, built from it; VERIFY=no does not build
	VERIFY="$(VERIFY)" sh scripts/package.sh

dist: setup ## target/dist/out: tarball, Debian package, SBOM, changes and checksums of a release, the same bytes for a commit
	sh scripts/dist.sh

run: build guests ## the example, registered in a private etcd, until Ctrl-C
	target/release/leasehold run --dev guest-example/greeter.yaml

# The tests run the shipped binary. The tests of the scenarios add a feature to the registrar, and so are built apart.
test: build guests clients examples ## every test, on a real etcd; then SEEDS=n seeds on the simulated one
	cargo test --locked --release $(UNITS) -p leasehold -p leasehold-wasmtime -p leasehold-artifacts -p leasehold-cli
	# Without the examples, whose exports are those of components.
	cargo test --locked --release -p $(LIBRARY) --no-default-features --features p3-http --lib
	cargo test --locked --release -p $(LIBRARY) --no-default-features --features p3-http --doc
	cargo test --locked --release -p leasehold-scenarios -p leasehold-end-to-end
	target/release/simulate --seeds $(SEEDS)

registry-test: build guests ## components pushed to and run from the registry of the CNCF, which Go builds
	@command -v go >/dev/null || { echo "registry-test: needs Go, which builds the registry: https://go.dev/dl, or apt-get install golang-go" >&2; exit 1; }
	mkdir -p target/registry
	cd target/registry && { test -f go.mod || go mod init current; } && go get github.com/distribution/distribution/v3/cmd/registry@latest
	cd target/registry && go build -o registry github.com/distribution/distribution/v3/cmd/registry
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin registry
	target/release/registry

etcd: ## target/etcd/etcd: the current release, for `make test ETCD=target/etcd/etcd`
	@command -v go >/dev/null || { echo "etcd: needs Go, which builds it: https://go.dev/dl, or apt-get install golang-go" >&2; exit 1; }
	mkdir -p target/etcd
	cd target/etcd && { test -f go.mod || go mod init current; } && go get go.etcd.io/etcd/server/v3@latest
	cd target/etcd && go build -o etcd go.etcd.io/etcd/server/v3

lint: setup ## formatting, clippy, also without features of the libraries, documentation; warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --release $(HOSTS) --all-targets -- -D warnings
	sh scripts/guests.sh lint $(GUESTS) $(LIBRARY)
	sh scripts/features.sh
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --release --no-deps $(HOSTS)

wasmtime-range: setup ## the plugin with the oldest release of wasmtime that it takes; the newest is that of all other targets
	sh scripts/wasmtime-range.sh

monitoring: ## the alert rules and their tests, with promtool
	@command -v promtool >/dev/null || { echo "monitoring: needs promtool: apt-get install --no-install-recommends prometheus" >&2; exit 1; }
	promtool check rules deploy/prometheus/alerts.yaml
	promtool test rules deploy/prometheus/alerts.test.yaml

simulate: setup ## SEEDS=n seeds on the simulated etcd; SEED=n replays one
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin simulate
	target/release/simulate $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

# Sanitizers find nothing in a host without unsafe code of its own. What is found anew stays under target/fuzz.
fuzz: setup ## what strangers write, each target for SECONDS=n (60); FUZZ="layout node" runs these alone
	@command -v cargo-fuzz >/dev/null || { echo "fuzz: needs cargo-fuzz: cargo install cargo-fuzz --locked" >&2; exit 1; }
	@mkdir -p $(FUZZ:%=target/fuzz/corpus/%)
	@failed=; for target in $(FUZZ); do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none --target-dir target/fuzz $$target target/fuzz/corpus/$$target fuzz/corpus/$$target \
			-- -max_total_time=$(SECONDS) -timeout=5 -rss_limit_mb=2048 -print_final_stats=1 || failed="$$failed $$target"; done; \
	test -z "$$failed" || { echo "fuzz: found something:$$failed" >&2; exit 1; }

interop: build guests ## services against the libraries of others; LIBRARIES="kratos rpcx" runs these alone
	@command -v go >/dev/null || { echo "interop: needs Go 1.26 or newer, for the libraries: https://go.dev/dl" >&2; exit 1; }
	cd tests/interop && go build -trimpath -o ../../target/interop/ ./...
	cd tests/interop/go-zero && go build -trimpath -o ../../../target/interop/ .
	python3 -m venv target/interop/python
	target/interop/python/bin/pip install --quiet --disable-pip-version-check -r tests/interop/python/requirements.txt
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin interop
	target/release/interop $(LIBRARIES)

HTTP_LANGUAGES = $(filter-out rust-grpc,$(or $(LANGUAGES),rust rust-p3 go c js ts python))
guests-all: build ## every template of `leasehold new`, built by its real toolchain and held to one table; LANGUAGES="go c" takes these alone
	sh scripts/guests-all.sh $(LANGUAGES)
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin guests
	# The table is about HTTP; the service in gRPC has its test alone.
	$(if $(HTTP_LANGUAGES),target/release/guests target/guests $(HTTP_LANGUAGES))

first-key: build ## the time from an empty folder to a key in etcd for each language, with empty caches; LANGUAGES="go c" takes these alone
	sh scripts/first-key.sh $(LANGUAGES)

# One after the other, also where make may do several things at once; all of them, also where one falls short.
bench: build guests ## everything beside its peers, a line a figure: the five that follow; ROUNDS=n (5), LARGE=no leaves out 100,000 keys
	@failed=; for part in lease serving views many startup; do $(MAKE) --no-print-directory bench-$$part || failed="$$failed bench-$$part"; done; \
	test -z "$$failed" || { echo "bench: these failed or fell short:$$failed" >&2; exit 1; }

bench-lease: setup ## the registrar beside the usual client; ROUNDS=n (5), LARGE=no leaves out 100,000 keys
	@command -v go >/dev/null || { echo "bench-lease: needs Go, for the peer: https://go.dev/dl, or apt-get install golang-go" >&2; exit 1; }
	cargo build --locked --release -p leasehold-bench
	cd tests/peers/usual-client && go build -trimpath -o ../../../target/peers/usual-client .
	target/release/bench --rounds $(ROUNDS) --large $(LARGE)

bench-views: build guests ## 100,000 nodes of one service followed and looked up, beside two libraries of Go; ROUNDS=n (5)
	@command -v go >/dev/null || { echo "bench-views: needs Go, for the peers: https://go.dev/dl, or apt-get install golang-go" >&2; exit 1; }
	cargo build --locked --release -p leasehold-bench
	cd tests/peers/endpoints-view && go build -trimpath -o ../../../target/peers/endpoints-view .
	cd tests/peers/go-zero-view && go build -trimpath -o ../../../target/peers/go-zero-view .
	target/release/views --rounds $(ROUNDS)

WASMTIME := run,serve,cache,component-model-async,cranelift,parallel-compilation,pooling-allocator,wasi-http,wasi-config
bench-serving: build guests ## requests served, beside `wasmtime serve` and a server in Go; ROUNDS=n (5); FIGURES="gRPC start" measures these alone; BEFORE=path/to/leasehold takes another build as the peer; builds wasmtime once
	@command -v go >/dev/null || { echo "bench-serving: needs Go, for a peer: https://go.dev/dl, or apt-get install golang-go" >&2; exit 1; }
	@command -v wrk >/dev/null && command -v h2load >/dev/null || { echo "bench-serving: needs wrk and h2load: apt-get install wrk nghttp2-client" >&2; exit 1; }
	test -n "$(BEFORE)" || target/peers/bin/wasmtime --version 2>/dev/null || cargo install wasmtime-cli --version ^48 --locked --root target/peers --no-default-features --features $(WASMTIME)
	test -n "$(BEFORE)" || { cd tests/peers/grpc-greeter && go build -trimpath -o ../../../target/peers/grpc-greeter .; }
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin serving
	target/release/serving $(ROUNDS) $(FIGURES)

bench-startup: build guests ## from the start of the process to the key in etcd, held against its target
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin startup
	target/release/startup

bench-many: build guests ## a thousand services in one process: the start, the memory, a reload, an upgrade, the end
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin many
	target/release/many

# The etcd of three members and its load share this machine; other processes on it show in the figures.
growth: setup ## a million registrations on the simulated etcd, 200,000 on a real one of three members; PART=simulated or real, HOSTS=n, KEYS=n, TTL=seconds
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin growth
	target/release/growth $(PART) $(if $(HOSTS),--hosts $(HOSTS)) $(if $(KEYS),--keys $(KEYS)) $(if $(TTL),--ttl $(TTL))

isolation: build guests ## renewals counted while guests burn every core for MINUTES=n (10)
	cargo build --locked --release -p leasehold-scenarios -p leasehold-end-to-end --bin isolation
	target/release/isolation $(MINUTES)

clean: ## remove what was built
	cargo clean
