#!/usr/bin/env bash
# Runs a command with the Spark Connect server and client of Spark 4.1.4, installed beside the environment's Spark:
#
#   launch/with_connect.sh python -m pytest -m connect
#
# The client of Spark 4.1 asks for protobuf 6 or newer, which TensorFlow has from 2.20 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$PWD/.venv/connect
if [[ ! -e $folder/ready ]]; then
    echo "[setup] the packages of Spark Connect in $folder"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$folder" \
        "grpcio-status==1.80.1" "googleapis-common-protos==1.76.0" "zstandard==0.25.0"  # grpcio is TensorFlow's
    touch "$folder/ready"
fi
HVDKERAS_CONNECT=1 PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} exec launch/with_spark.sh 4.1.4 "$@"
