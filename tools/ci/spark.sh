#!/usr/bin/env bash
# Runs the recipe for Spark with pyspark, in an environment of its own. Needs a Java runtime, which it
# installs where apt can. Not in .ci/run, because pyspark is large.
# Usage: tools/ci/spark.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/tree.sh"
. "$(dirname "$0")/packages.sh"

command -v java >/dev/null || install_packages default-jre-headless
copy_tree "$work/gpt2c"
cd "$work/gpt2c"
make_venv pyspark==4.3.0 pandas pyarrow pytest hypothesis
GPT2C_BUILD=require "$work/venv/bin/pip" install -q .
"$work/venv/bin/python" -c 'import pyspark; print("pyspark", pyspark.__version__)'
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_spark.py "$@"
echo "spark: clean"
