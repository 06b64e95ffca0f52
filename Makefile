# Thin: every target calls a script in scripts/, which says what it does and installs what is missing.

.DEFAULT_GOAL := help
.PHONY: help run test soak chaos check fuzz mutants bench c2m setup

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Install what is missing, build, and serve the sample inventory on an embedded Postgres
	@scripts/run

test: ## Install what is missing and run all the tests
	@scripts/test

soak: ## Watch the events for a minute under load, over two replicas of which one is killed
	@scripts/soak

chaos: ## Break everything under load for two minutes, over three replicas, and check the history (docs/chaos.md)
	@scripts/chaos

check: ## Run what CI checks beside the tests: formats, lints, docs, contracts, licences
	@scripts/check

fuzz: ## Feed what strangers may send with bytes that nobody would (30 seconds for each target)
	@scripts/fuzz

mutants: ## Change src/domain in one place after the other, and see that a test notices (an hour)
	@scripts/mutants

bench: ## Measure the service beside what the machine could do (about ten minutes)
	@scripts/bench

c2m: ## Place two million projects on 6,100 servers, one a call and in bulk (about ten minutes)
	@scripts/bench c2m

setup: ## Only install what is missing
	@scripts/setup
