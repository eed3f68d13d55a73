# Doors for people who do not know Invoke yet. Everything real is in tasks.py: `.venv/bin/invoke --list`.
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help setup fleet serve dev up test check bench toolkit

help: ## say what the doors are
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## make .venv, the toolkit's private environment
	@sh bootstrap.sh

fleet: ## the same with what rooms of machines need (docs/rooms.md)
	@sh bootstrap.sh fleet

serve: ## the same with what a hub and a cluster need (docs/scale.md)
	@sh bootstrap.sh serve

dev: ## the same with what tests and static checks need
	@sh bootstrap.sh dev

up: setup ## do the main job for this host: lock check, fetch, build, labs, verify, one table
	@$(BIN)/invoke up

test: check ## pass all tests (container tests where a Docker engine answers)
	@$(BIN)/invoke build --engine=venv
	@$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

check: dev ## static checks: types, lint, rendered files current
	@$(BIN)/mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/invoke render --check

bench: dev ## measure against what a user would do instead
	@$(BIN)/python -m bench

toolkit: setup ## pin the toolkit's own packages anew (requirements*.txt)
	@for extra in "" fleet serve dev; do \
	    $(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --upgrade --no-header --no-annotate \
	        $${extra:+--extra $$extra} --python-version 3.11 pyproject.toml --output-file "requirements$${extra:+-$$extra}.txt" || exit; done
