#!/usr/bin/env bash
# Style and types of the Python, and the C core with every warning an error.
# Usage: tools/ci/lint.sh [python of an environment with the dev extra]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(command -v "${1:-.venv/bin/python}")

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
for source in csrc/*.c csrc/kernels/*.c; do
    "${CC:-cc}" -std=c11 -O2 -ffp-contract=off -Wall -Wextra -Wshadow -Wpointer-arith \
        -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wno-sign-conversion -Werror \
        -Icsrc -c "$source" -o "$objects/$(basename "$source").o"
done
echo "lint: clean"
