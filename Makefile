# Two commands to remember: `make demo` and `make test`. Each installs what it needs first (scripts/setup).
#
# Build products and tools are kept in ~/.cache/tandem, outside the checkout, unless CARGO_TARGET_DIR or TANDEM_CACHE say otherwise. The
# order of the steps of `make test` is chosen so that nothing is compiled twice: clippy and the feature matrix share one set of checked
# dependencies, and the documentation uses it too; nextest builds the one binary that the SDK suites then start.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.NOTPARALLEL:

TANDEM_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tandem
CARGO_TARGET_DIR ?= $(TANDEM_CACHE)/target
export TANDEM_CACHE CARGO_TARGET_DIR
export PATH := $(PATH):$(TANDEM_CACHE)/tools/bin:$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

step := @scripts/step
clippy = $(step) "clippy, $(1)" cargo clippy --locked $(2) -- -D warnings
schema = $(step) "requests made up from /openapi.json" $(TANDEM_CACHE)/schema/bin/python tests/schema/run.py $(1)
# Colours and progress bars are for people.
nextest_profile := $(if $(CI),ci,default)

.PHONY: help demo test test-slow bench-peers lint fmt t setup setup-slow fmt-check clippy features doc unit doctest sdk schema slow frameworks deny

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## from a fresh machine to two answers
	@scripts/demo

test: setup fmt-check clippy features doc unit doctest sdk schema ## the whole suite

test-slow: setup-slow slow frameworks ## the tests in modules called `slow`, many requests made up, and frameworks: minutes

bench-peers: ## both backends beside llama-server, vLLM and others on the same weights: half an hour the first time; ARGS="--threads 2" and others
	@scripts/bench-peers $(ARGS)

t: ## the inner loop: no backend but sim, a few seconds once built
	cargo t

lint: fmt-check clippy features doc ## formatting, clippy over all features, documentation

fmt: ## format the code
	cargo fmt --all

setup: ## install what the tests need
	$(step) "setup" scripts/setup test

setup-slow:
	$(step) "setup" scripts/setup slow

fmt-check:
	$(step) "formatting" cargo fmt --all --check

# Tests switch failpoints on, so what is shipped is looked at by itself too.
clippy:
	$(call clippy,all crates,--workspace --all-targets)
	$(call clippy,as shipped,--workspace)

# The server with each backend alone and with none. The other crates stay in the selection, so that dependencies keep the features they
# have been compiled with: without them llama.cpp would be compiled once more.
features:
	$(call clippy,sim alone,--workspace --all-targets --no-default-features)
	$(call clippy,llama-cpp alone,--workspace --all-targets --no-default-features --features tandem/llama-cpp)
	$(call clippy,candle alone,--workspace --all-targets --no-default-features --features tandem/candle)

# Read by those who work on the code: a link to something private is a good link.
doc:
	$(step) "documentation" env RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items

unit:
	$(step) "tests" cargo nextest run --locked --workspace --profile $(nextest_profile)

doctest:
	$(step) "documentation tests" cargo test --locked --workspace --doc

sdk: ## the official Python and Node SDKs against the binary that the tests built
	$(step) "OpenAI SDK for Python" $(TANDEM_CACHE)/venv/bin/python -m pytest tests/sdk
	$(step) "OpenAI SDK for Node" scripts/node --test --test-reporter=tap tests/sdk/batch.test.js

schema: ## a few requests for each operation, the same each time; many more in test-slow
	$(call schema,quick)

slow:
	$(step) "slow tests" cargo nextest run --locked --workspace --profile slow
	$(call schema,thorough)

frameworks: ## LangChain, LiteLLM, Instructor and the AI SDK against the binary that the tests built; needs `make setup-slow` once
	$(step) "LangChain, LiteLLM and Instructor" $(TANDEM_CACHE)/frameworks/bin/python -m pytest tests/frameworks
	$(step) "AI SDK" scripts/node --test --test-reporter=tap tests/frameworks/vercel.test.js

deny: ## licences, advisories and sources of dependencies; needs cargo-deny and the network
	cargo deny --locked check
