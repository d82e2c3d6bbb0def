#!/usr/bin/env bash
# The README's two commands in one fresh clone, in their order: install and generate, then install
# for the tests and run all of them.
# Usage: tools/ci/readme.sh
set -euo pipefail
. "$(dirname "$0")/tree.sh"

copy_tree "$work/gpt2c"
cd "$work/gpt2c"
generate_line=$(grep -m 1 -E '^python3 -m venv .*gpt2c generate ' README.md)
test_line=$(grep -m 1 -E '^python3 -m venv .*pytest$' README.md)

echo "+ $generate_line"
bash -c "$generate_line"
# Without a compiler that command installs on NumPy alone: here the engine may not be missing.
.venv/bin/python -c 'from gpt2c import _engine; print("engine:", _engine.instruction_sets())'
echo "+ $test_line"
bash -c "$test_line"
