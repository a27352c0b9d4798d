# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up what they need.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test test-connect chaos lint setup setup-gpu clean

demo: setup
	python examples/demo.py

# The Spark tests run a second time on Spark 4, where the machine has the Java for it. Minutes are saved there by what
# does not look at Spark: the loss of an executor, MLflow, columns of bytes, and the workflow, which the newest
# combination runs.
ON_SPARK_4 := $(addprefix --deselect tests/spark/,test_executor_loss.py test_mlflow_example.py test_decode.py \
	test_workflow.py)

test: setup
	python -m pytest -m "not (chaos and slow)"
	launch/with_spark.sh 4.1.4 python -m pytest tests/spark $(ON_SPARK_4)

# What `make test` leaves out of it are the tests that break Spark or the network, or repeat: half an hour.
chaos: setup
	python -m pytest -m chaos --timeout 600

# Not among the tests: a process is either a client of Spark Connect or has a Spark of its own.
test-connect: setup
	launch/with_connect.sh python -m pytest tests/spark/test_connect.py

lint: setup
	ruff check
	ruff format --check

setup:
	@launch/setup.sh

setup-gpu:
	@launch/setup.sh gpu

clean:
	rm -rf .venv build *.egg-info
