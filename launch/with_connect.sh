#!/usr/bin/env bash
# Runs a command with the Spark Connect server and client of Spark 4.0.1, installed beside the environment's Spark:
#
#   launch/with_connect.sh python -m pytest -m connect
#
# Spark 4.0 is the newest whose client takes TensorFlow 2.18's protobuf 5; that of Spark 4.1 asks for protobuf 6.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$PWD/.venv/connect
if [[ ! -e $folder/ready ]]; then
    echo "[setup] the packages of Spark Connect in $folder"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$folder" \
        "grpcio-status==1.67.1" "googleapis-common-protos>=1.65,<1.71"  # grpcio is TensorFlow's
    touch "$folder/ready"
fi
HVDKERAS_CONNECT=1 PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} exec launch/with_spark.sh 4.0.1 "$@"
