#!/usr/bin/env bash
# Tests gpt2c.jobs.ray on a cluster of several nodes on this machine, in an environment of its own.
# Usage: tools/ci/ray.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/tree.sh"

copy_tree "$work/gpt2c"
cd "$work/gpt2c"
make_venv 'ray[data]==2.60.0' pytest hypothesis
GPT2C_BUILD=require "$work/venv/bin/pip" install -q '.[ray]'

# The tests skip themselves if one of these is missing; here that is a failure.
"$work/venv/bin/python" -c 'import ray.data
from gpt2c.engine import _engine
print("ray", ray.__version__, "engine:", _engine.instruction_sets())'
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_ray.py "$@"
echo "ray: clean"
