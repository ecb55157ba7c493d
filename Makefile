# Of Cargo.toml; one for lint and tests, so that they share what they build.
PROFILE := ci
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The VM is made as root, beside cargo, whose lines would run over sudo's question.
ASK_FOR_ROOT = [ "$$(id -u)" = 0 ] || tests/guest/build.sh --is-there $(1) || sudo -v

.PHONY: help build demo guest test attack ways bench micro instructions pages lint msrv cross dist dist-test fmt

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 16

build: ## target/release/gvproxy
	cargo build --release

demo: ## a VM under QEMU, and its podman answering on a host socket (KEEP=1 leaves it running)
	@tests/install.sh demo
	@$(call ASK_FOR_ROOT,trixie)
	@echo 'gvproxy and its VM are made beside each other: two minutes or three'
	@env --default-signal=INT tests/guest/build.sh trixie & guest=$$!; \
		cargo build --profile demo --bin gvproxy; built=$$?; \
		wait $$guest && exit $$built
	@tests/demo.sh $(TARGET)/demo/gvproxy

guest: ## the VM of the demo and the tests, in tests/guest/cache
	@tests/install.sh demo
	@tests/guest/build.sh

test: ## everything: lint, unit tests, network namespaces, a real VM
	@tests/install.sh test windows
	@$(MAKE) --no-print-directory lint
	@$(call ASK_FOR_ROOT)
	@echo 'the tests and their VMs are made beside each other: minutes, the most of them at "Compiling gvproxy"'
	@env --default-signal=INT tests/guest/build.sh & guest=$$!; \
		cargo test --workspace --profile $(PROFILE) --no-run; built=$$?; \
		wait $$guest && exit $$built
	@tests/run.sh $(PROFILE)
	@benches/netstack/instructions.sh

attack: ## a guest that means harm beside one that works, each attack alone (GVPROXY=/path names another daemon)
	@tests/install.sh test
	cargo test --profile $(PROFILE) --test attack -- --nocapture --test-threads 1

ways: ## podman's API by every transport into a VM, and an image of 2 GiB loaded by each (ARCHIVE_MB=64, WAYS="ssh hybrid" for less)
	@tests/install.sh test
	@tests/guest/build.sh
	ARCHIVE_MB=$(or $(ARCHIVE_MB),2048) cargo test --profile $(PROFILE) --test vm_ways -- --nocapture

bench: ## speed, cost and scale beside the peers that are there (ROWS=udp RUNS=1: see CONTRIBUTING.md)
	@tests/install.sh bench
	cargo bench --bench peers

micro: ## what netstack itself costs, in time: frames in to frames out (ROWS=to_guest, some of it)
	MALLOC_MMAP_THRESHOLD_=131072 cargo run --release -p netstack-bench -- $(ROWS)

instructions: ## the same in instructions, which do not vary: takes anew the figures that `make test` compares with
	@tests/install.sh instructions
	@benches/netstack/instructions.sh --update

pages: ## manual pages, completions for bash, zsh and fish, and the tables of docs/, from the tables of flags and keys
	UPDATE_PAGES=1 cargo test -q --profile $(PROFILE) -p gvproxy --test pages

lint: ## formatting, clippy, documentation, scripts, dependencies, what imports what
	@tests/install.sh lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --profile $(PROFILE) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --profile $(PROFILE)
	shellcheck .ci/run $$(git ls-files '*.sh')
	@tests/imports.sh >/dev/null
	@git ls-files '*.rs' ':!src/sys' | xargs awk '/(cfg|cfg_attr|cfg!)\(.*(target_os|unix|windows)/ { asked = FILENAME ":" FNR ": " $$0; next } \
		asked && !/#\[(test|tokio::test|expect)|mod tests|^    fn unix/ { print asked " the operating system is the matter of src/sys"; bad = 1 } \
		{ asked = "" } END { exit bad }' >&2
	@! git ls-files '*.rs' | xargs awk 'length > 110 && /^ *\/\// { print FILENAME ":" FNR ": a comment of more than 110 columns"; wide = 1 } \
		END { exit !wide }' >&2
	PATH=$$PATH:tests/guest/cache/bin cargo deny --workspace --log-level error check bans licenses sources
	cargo package -q --workspace --exclude netstack-bench --exclude testkit --no-verify --allow-dirty --locked
	cargo test --workspace --profile $(PROFILE) --test pages
	@! cargo tree -p gvproxy-netstack -e normal --prefix none | grep -E '^(tokio|mio|socket2|rustix) ' || \
		{ echo 'netstack may not depend on these' >&2; exit 1; }

msrv: ## cargo check with the oldest Rust that Cargo.toml names: rustup has to have it
	@version=$$(sed -n 's/^rust-version = "\(.*\)"$$/\1/p' Cargo.toml); \
	case $$(rustc +$$version --version 2>&1) in \
	"rustc $$version".*) set -x; cargo +$$version check --workspace --all-targets --profile $(PROFILE) ;; \
	*) echo "msrv: there is no Rust $$version: rustup toolchain install $$version --profile minimal" >&2; exit 1 ;; \
	esac

dist: ## target/dist: static programs with manual pages, completions and units, as .tar.gz and .deb
	@tests/install.sh dist
	@share/dist.sh

windows: ## the programs for Windows: built here, run by Wine
	@tests/install.sh windows
	@tests/windows.sh $(PROFILE)

cross: ## the programs for macOS and for Linux on arm64, and what of their tests can be run here (TARGETS=..., some of them)
	@tests/install.sh cross
	@tests/cross.sh $(TARGETS)

dist-test: dist ## what `make dist` made, installed in a new Debian, tried there, and removed (MIRROR=URL, SUITE=bookworm)
	@tests/dist.sh

fmt: ## rustfmt
	cargo fmt --all
