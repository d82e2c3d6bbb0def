#!/usr/bin/env bash
# Compares gpt2c.from_transformers with transformers' own generate, and embeddings with its hidden
# states, in an environment of its own.
# Usage: tools/ci/transformers.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/tree.sh"

copy_tree "$work/gpt2c"
cd "$work/gpt2c"
# Install torch first and alone: packages that need it then use this build.
make_venv torch==2.13.0
"$work/venv/bin/pip" install -q transformers==5.24.0 pytest hypothesis
GPT2C_BUILD=require "$work/venv/bin/pip" install -q '.[transformers]'

# The tests skip themselves if one of these is missing; here that is a failure.
"$work/venv/bin/python" -c 'import torch, transformers
from gpt2c.engine import _engine
print("torch", torch.__version__, "transformers", transformers.__version__, "engine:",
      _engine.instruction_sets())'
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_from_transformers.py \
    tests/test_transformers_options.py tests/test_transformers_defaults.py \
    tests/test_transformers_processors.py "$@"
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_checkpoint_options.py \
    -k transformers_reads
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_embeddings.py -k transformers
echo "transformers: clean"
