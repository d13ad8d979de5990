# Everything a user types. Each target makes what it needs first.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# The same in every shell: no packages of the user's home, no crash reports or usage sent anywhere.
export PYTHONNOUSERSITE := 1
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help bench demo test test-cluster faults faults-long check check-locks params lock llama cluster ui

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/ready ## the whole pipeline on the embedded model: base against tuned, and a report
	siftune repro
	siftune summary

test: .venv/ready ## the tests
	pytest

faults: .venv/ready ## trainings and other stages are killed, stopped, starved; a table of what was lost
	python tests/faults/run.py --size ci

faults-long: .venv/ready ## the same many times over; hours
	python tests/faults/run.py --size long

check: .venv/ready ## lint, types and the rules of the house
	ruff format --check .
	ruff check .
	mypy
	pytest tests/test_house.py

bench: .venv/ready ## training steps against peers: tables in work/bench; TANG=FILE and GSM8K=FILE are poems and problems
	python bench/growth.py
	$(if $(TANG),python bench/peers.py sft --data "$(TANG)" $(if $(LLAMA_FACTORY),--llama-factory-python "$(LLAMA_FACTORY)"))
	$(if $(GSM8K),python bench/peers.py dpo --data "$(GSM8K)")
	$(if $(GSM8K),python bench/peers.py grpo --data "$(GSM8K)")

params: .venv/ready ## compose conf/ into params.yaml, e.g. make params SET="size=reduced sft.learning_rate=5e-4"
	python -m siftune.presets $(SET)

lock: ## resolve pyproject.toml anew into containers/locks (.venv has uv)
	containers/lock.sh

check-locks: .venv/ready ## resolve each lock again, and ask for known faults (needs the Python index)
	pytest -m network tests/test_locks.py
	python containers/audit.py || [ $$? = 69 ]

llama: .venv/ready ## build llama.cpp once, for quantised GGUF types and for running them
	containers/llama.sh build

test-cluster: .venv/ready ## the image and the batch scripts on a real Slurm cluster, all on this machine (needs root)
	pytest --numprocesses=4 --dist=loadgroup tests/cluster

cluster: ## a shell on the login node of a Slurm cluster of five nodes, all on this machine (needs root)
	$(PYTHON) tests/cluster/cluster.py

ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
ui: .venv/ready ## MLflow on http://127.0.0.1:5000
	mlflow server --workers 1 --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

.venv/ready: containers/venv.sh containers/llama.sh $(wildcard containers/locks/*.txt) pyproject.toml
	PYTHON=$(PYTHON) containers/venv.sh
	touch $@
