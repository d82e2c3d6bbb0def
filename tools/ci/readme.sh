#!/usr/bin/env bash
# Runs the README's two commands in one fresh clone, in order: install and generate, then install for
# the tests and run all tests.
# Usage: tools/ci/readme.sh
set -euo pipefail
. "$(dirname "$0")/tree.sh"

copy_tree "$work/gpt2c"
cd "$work/gpt2c"
generate_line=$(grep -m 1 -E '^python3 -m venv .*gpt2c generate ' README.md)
test_line=$(grep -m 1 -E '^python3 -m venv .*pytest$' README.md)

echo "+ $generate_line"
bash -c "$generate_line"
# Without a compiler, that command installs only the NumPy backend, but CI requires the engine.
.venv/bin/python -c 'from gpt2c.engine import _engine; print("engine:", _engine.instruction_sets())'
echo "+ $test_line"
bash -c "$test_line"
