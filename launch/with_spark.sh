#!/usr/bin/env bash
# Runs a command with another Spark than the environment's, installed beside it:
#
#   launch/with_spark.sh 4.1.4 python -m pytest tests/spark
#
# Spark 4 needs a full Java 17 or newer; without one this says so and ends well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
spark=$1
shift
if ! "${JAVA_HOME:+$JAVA_HOME/bin/}java" --list-modules 2>/dev/null | grep -q '^jdk.incubator.vector'; then
    echo "SKIPPED on Spark $spark: it needs a full Java 17 or newer, with jdk.incubator.vector: $*"
    exit 0
fi
folder=$PWD/.venv/spark-$spark
if [[ ! -e $folder/ready ]]; then
    echo "[setup] Spark $spark in $folder"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$folder" "pyspark==$spark"
    touch "$folder/ready"
fi
unset SPARK_HOME
PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} exec "$@"
