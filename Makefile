# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up what they need.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test lint setup setup-gpu clean

demo: setup
	python examples/demo.py

test: setup
	python -m pytest

lint: setup
	ruff check
	ruff format --check

setup:
	@launch/setup.sh

setup-gpu:
	@launch/setup.sh gpu

clean:
	rm -rf .venv build *.egg-info
