# Saltus: one command each. `make help` lists them.
#
# Long recipes live in .ci/. Everything that compiles runs through .ci/with-env, which finds CPython and keeps build
# results in a cache folder that a fresh clone finds again.
#
# Profiles: the light packages are built and tested in the dev profile, the server with --release only, so that
# DataFusion is compiled once. The load generator is built by itself: what its plots ask of shared packages would have the server
# built again.

LIGHT := -p saltus-core -p saltus-shards -p saltus-python -p saltus-loadtest -p saltus-benches
ENV := .ci/with-env
ROUNDS ?= 40
FUZZ_SECONDS ?= 60
FUZZ_TARGET ?= line_protocol

.DEFAULT_GOAL := help
.PHONY: help setup build run start stop test check crash bench bench-check bench-baseline latency loadtest profile \
	scaling neighbours many fuzz format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

setup: ## installs what is missing: compiler, CPython with its library, test runner
	@.ci/setup

build: setup ## builds the server and the load generator, optimised
	$(ENV) cargo build --release -p saltus
	$(ENV) cargo build --release -p saltus-loadtest

run: build ## starts a server, loads real data, runs a plugin on it, prints what came out; leaves it running
	@$(ENV) .ci/demo run

start: build ## starts the server of `make run` again, on the data it has
	@$(ENV) .ci/demo start

stop: ## stops the server of `make run`
	@.ci/demo stop

test: setup ## all tests
	$(ENV) .ci/cargo-test $(LIGHT)
	$(ENV) cargo test --quiet $(LIGHT) --bench '*'
	$(ENV) cargo build --release -p saltus-loadtest
	$(ENV) .ci/cargo-test --release -p saltus
	$(ENV) cargo test --quiet --release -p saltus --bench '*'
	$(ENV) .ci/plugin-tests

check: setup ## everything that must hold before a change lands: format, lints, docs, tests, licences, demo, instruction counts
	cargo fmt --all --check
	$(ENV) cargo clippy $(LIGHT) --all-targets -- -D warnings
	$(ENV) cargo clippy --release -p saltus --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(ENV) cargo doc --no-deps --document-private-items $(LIGHT)
	RUSTDOCFLAGS="-D warnings" $(ENV) cargo doc --no-deps --document-private-items --release -p saltus
	$(MAKE) test
	$(ENV) .ci/licences
	$(MAKE) build
	$(ENV) .ci/demo smoke
	@.ci/setup counts
	@$(ENV) .ci/bench check

crash: setup ## kills the server during ingest ROUNDS times and looks for rows and events that are missing
	SALTUS_CRASH_ROUNDS=$(ROUNDS) NEXTEST_PROFILE=crash $(ENV) .ci/cargo-test --release -p saltus --test crash

bench: ## micro-benchmarks: times and instructions of every case, into docs/benchmarks.md
	@.ci/setup counts
	@$(ENV) .ci/bench all

bench-check: ## compares the instructions of every case with benches/baseline.json
	@.ci/setup counts
	@$(ENV) .ci/bench check

bench-baseline: ## writes benches/baseline.json anew
	@.ci/setup counts
	@$(ENV) .ci/bench baseline

latency: build ## time from write to plugin entry: every lane, durable and not, and PostgreSQL with PL/Python beside it
	@$(ENV) .ci/demo latency

loadtest: build ## all load test scenarios, rivals beside them, into docs/benchmarks.md; SECONDS=60 for longer ones
	@$(ENV) .ci/demo loadtest --seconds $(or $(SECONDS),10)

profile: build ## where a single-row write spends its time, by samples that hardly disturb; needs perf and root
	@$(ENV) sh -c '"$$PYO3_PYTHON" .ci/profile_write.py && "$$PYO3_PYTHON" .ci/profile_write.py --busy-poll'

scaling: build ## whether two shards run twice the Python of one
	@$(ENV) .ci/demo measure scaling

neighbours: build ## what light triggers of every lane notice of evil and of heavy neighbours; LANE=deferred|process for other lanes of those
	@$(ENV) .ci/demo measure neighbours $(if $(LANE),--lane $(LANE))

many: build ## what thousands of triggers, tables and databases cost, and what a write notices of them; COUNT=1000 for fewer
	@$(ENV) .ci/demo measure many $(if $(COUNT),--count $(COUNT))

fuzz: setup ## fuzzes the line protocol parser for FUZZ_SECONDS
	cd core && RUSTC_BOOTSTRAP=1 ../$(ENV) cargo fuzz run $(FUZZ_TARGET) -- -max_total_time=$(FUZZ_SECONDS)

format: ## formats the sources
	cargo fmt --all

clean: stop ## removes build results and the demo's data
	$(ENV) cargo clean
	rm -rf "$${SALTUS_DEMO_DIR:-.saltus-demo}"
