# The short way to everything. Each target installs what it lacks (tools/setup.sh) and builds what it needs.
.SUFFIXES:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup build serve test chaos bench balance-report ep-sim format asan tsan clang clean

# What `make serve` serves, and further flags for it, as in ARGS="--listen 127.0.0.1:9000".
MODEL ?= $(DEMO)
ARGS ?=
DEMO := tools/demo_model/checkpoint
JOBS ?= $(shell tools/jobs.sh)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-21s %s\n", $$1, $$2 }'

setup: ## install the Debian packages that are missing
	@tools/setup.sh

# Ninja configures again by itself when a CMakeLists.txt changes, but knows nothing of the presets.
build/build.ninja: CMakePresets.json | setup
	cmake --preset dev
	@touch $@

build: build/build.ninja ## build everything
	cmake --build build -j $(JOBS)

serve: build/build.ninja ## build the server and start it: MODEL=<folder> ARGS="<flags>"
	@cmake --build build -j $(JOBS) --target jevons
	@exec build/jevons serve --model "$(MODEL)" $(if $(filter $(DEMO),$(MODEL)),--model-name jevons-demo) $(ARGS)

test: ## build everything, run every test and check
	@tools/test.sh

chaos: build/build.ninja ## let groups of ranks suffer for ten minutes: ARGS="<flags>"
	@cmake --build build -j $(JOBS) --target chaos
	build/tests/chaos/chaos --log build/chaos.log $(ARGS)

bench: build/build.ninja ## measure the machine and two models on it: ARGS="<flags>"
	@cmake --build build -j $(JOBS) --target jevons_bench
	build/bench/jevons_bench $(ARGS)

balance-report: build/build.ninja ## balance ranks under a skewed load, and draw docs/balance.svg
	@cmake --build build -j $(JOBS) --target balance_report
	build/bench/balance_report docs/balance.svg

ep-sim: build/build.ninja ## simulate V3 on 8 to 144 GPUs, and draw docs/ep_sim.svg: ARGS="<flags>"
	@cmake --build build -j $(JOBS) --target ep_sim
	build/bench/ep_sim --json build/ep_sim.jsonl --plot docs/ep_sim.svg $(ARGS)

format: setup ## format the C++ sources
	@tools/format.sh

asan: ## run the tests with the address and undefined-behaviour sanitizers
	@tools/test.sh asan

tsan: ## run the tests without the server with the thread sanitizer
	@tools/test.sh tsan

clang: ## build with clang and its thread analysis, and run the tests
	@tools/test.sh clang

clean: ## remove build/
	rm -rf build
