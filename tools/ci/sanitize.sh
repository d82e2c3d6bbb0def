#!/usr/bin/env bash
# The core's tests on an engine built with AddressSanitizer and UndefinedBehaviorSanitizer (gcc).
# Usage: tools/ci/sanitize.sh [pytest arguments]; makes an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work"
python3 -m venv "$work/venv"
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
CC=gcc CFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" GPT2C_BUILD=require \
    "$work/venv/bin/pip" install -q -e "$work[test]"

cd "$work"
# The interpreter is not instrumented, so the run-time is loaded before it; it frees little at exit,
# so leaks are not looked for.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
PYTHONMALLOC=malloc \
    venv/bin/python -m pytest -q -p no:cacheprovider "${@:-tests/test_engine.py}" \
    $([ $# -gt 0 ] || echo tests/test_kernels.py tests/test_session.py tests/test_sampling.py \
        tests/test_generation.py tests/test_reference.py tests/test_backend.py)
echo "sanitizers: clean"
