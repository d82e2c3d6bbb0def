#!/usr/bin/env bash
# Runs the quick tests on an installed gpt2c, with the folder tests/ alone beside it, so that nothing is
# imported from the source tree. Takes some two minutes of CPU time.
# Usage: [QUICK=core] tools/release/quick.sh PYTHON [pytest arguments]
#   PYTHON is of an environment with gpt2c, pytest, hypothesis and regex. quick.txt lists the tests; with
#   QUICK=core, only those of its first group run (for emulators).
set -euo pipefail
quick_python=$(command -v "${1:?usage: tools/release/quick.sh PYTHON [pytest arguments]}")
[[ $quick_python == /* ]] || quick_python=$PWD/$quick_python
shift
here=$(cd "$(dirname "$0")" && pwd)
# In a checkout the tests are two folders up; bare.sh copies them next to this script.
if [ -d "$here/tests" ]; then from=$here; else from=$(cd "$here/../.." && pwd); fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$from/tests" "$from/pyproject.toml" "$folder"
if [ "${QUICK:-all}" = core ]; then
    tests=$(sed -n '/^#/d; /^$/q; p' "$here/quick.txt")
else
    tests=$(sed '/^#/d; /^$/d' "$here/quick.txt")
fi
cd "$folder"
export GPT2C_TEST_SHARE=${GPT2C_TEST_SHARE:-0.05}
# shellcheck disable=SC2086
"$quick_python" -P -m pytest -q -m "not slow" -p no:cacheprovider "$@" $tests
