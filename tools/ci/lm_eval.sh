#!/usr/bin/env bash
# Compares gpt2c's model for lm-eval with lm-eval's own model for transformers, in an environment of its own.
# Usage: tools/ci/lm_eval.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/tree.sh"

copy_tree "$work/gpt2c"
cd "$work/gpt2c"
# Install torch first and alone: packages that need it then use this build.
make_venv torch==2.13.0
"$work/venv/bin/pip" install -q lm-eval==0.4.13 transformers==5.5.4 accelerate pytest hypothesis
GPT2C_BUILD=require "$work/venv/bin/pip" install -q '.[lm-eval]'

# The tests skip themselves if one of these is missing; here that is a failure.
"$work/venv/bin/python" -c 'import lm_eval, torch, transformers
from gpt2c.compat.lm_eval import GPT2LM
from gpt2c.engine import _engine
print("torch", torch.__version__, "transformers", transformers.__version__, "engine:",
      _engine.instruction_sets())'
export HF_HUB_OFFLINE=1 # the tests use no network
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_lm_eval.py "$@"
echo "lm_eval: clean"
