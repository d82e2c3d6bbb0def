#!/usr/bin/env bash
# The engine built with clang: its warnings, and the tests of the engine, in an environment of its own.
# Installs Debian's clang where it can.
# Usage: tools/ci/clang.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/packages.sh"
if ! command -v clang >/dev/null; then
    if ! install_packages clang; then
        echo "clang: skipped: clang is not here and cannot be installed"
        exit 0
    fi
fi

tests="test_engine test_kernels test_golden_bits test_sampling test_stages test_drafts
    test_quantized test_threads"

. "$(dirname "$0")/tree.sh"
copy_tree "$work/gpt2c"
cd "$work/gpt2c"
mkdir "$work/objects"
CC=clang tools/ci/warnings.sh "$work/objects"
CC=clang GPT2C_BUILD=require make_venv -e ".[test]"
if ! grep -q "clang version" src/gpt2c/engine/_engine*.so; then
    echo "clang: the engine was not built with clang, although CC names it" >&2
    exit 1
fi

# gcc's build runs all random cases of these tests (readme.sh), so a fifth is enough here.
export GPT2C_TEST_SHARE="${GPT2C_TEST_SHARE:-0.2}"
[ $# -gt 0 ] || set -- -m "not slow" -k "not numpy" $(for test in $tests; do echo "tests/$test.py"; done)
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$@"
echo "clang: clean ($(clang --version | head -n 1))"
