#!/usr/bin/env bash
# Runs the core's tests on an engine built with gcc's sanitizers, in an environment of its own.
# Usage: tools/ci/sanitize.sh address|thread [pytest arguments]
#   address   AddressSanitizer and UndefinedBehaviorSanitizer
#   thread    ThreadSanitizer
# Code with sanitizers is slow, so tests run a fifth of their random cases. For all of them, set
# GPT2C_TEST_SHARE=1.
set -euo pipefail
kind=${1:?usage: tools/ci/sanitize.sh address|thread [pytest arguments]}
shift

case $kind in
address)
    flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    libraries="libasan.so libubsan.so"
    tests="test_engine test_kernels test_session test_sampling test_generation test_reference
        test_backend test_threads test_stages test_stops test_scoring test_quantized test_drafts
        test_beams test_transformers_beams test_probing test_fuzz test_forks
        test_interrupts"
    # The interpreter frees little at exit, so leak detection would report its memory.
    export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:log_path=report
    export UBSAN_OPTIONS=print_stacktrace=1:log_path=report
    ;;
thread)
    flags="-fsanitize=thread"
    libraries="libtsan.so"
    tests="test_threads test_session test_stops test_drafts test_probing"
    # The first report ends the run. Only gpt2c's code is instrumented, so every report is about it.
    export TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0:log_path=report GPT2C_THREADS=3
    ;;
*)
    echo "sanitize.sh: found '$kind', expected address or thread" >&2
    exit 2
    ;;
esac

for library in $libraries; do
    # gcc prints only the name of a library that it does not have.
    case $(gcc -print-file-name="$library" 2>/dev/null) in
    /*) ;;
    *)
        echo "sanitizers, $kind: skipped: there is no gcc with $library"
        exit 0
        ;;
    esac
done

. "$(dirname "$0")/tree.sh"
# ThreadSanitizer cannot follow how the C library frees a dead thread's variables, nor how the threads of
# NumPy's OpenBLAS wait for each other.
printf '%s\n' "race:_dl_deallocate_tls" "race:libscipy_openblas" >"$work/suppressions"
export TSAN_OPTIONS="${TSAN_OPTIONS:-}:suppressions=$work/suppressions"
copy_tree "$work/gpt2c"
cd "$work/gpt2c"
# Reports need only line numbers. Without -fno-var-tracking, gcc takes 1.4 times as long.
CC=gcc CFLAGS="$flags -fno-omit-frame-pointer -g -fno-var-tracking" LDFLAGS="$flags" \
    GPT2C_BUILD=require make_venv -e ".[test]"

# The interpreter is not instrumented, so the sanitizer's run-time must be loaded first.
preload=$(for library in $libraries; do gcc -print-file-name="$library"; done | xargs)
# ThreadSanitizer needs a fixed address layout: turn ASLR off if that is allowed.
fixed_layout="setarch -R"
$fixed_layout true 2>/dev/null || fixed_layout=
export GPT2C_TEST_SHARE="${GPT2C_TEST_SHARE:-0.2}"
# The NumPy backend has no code of ours in C.
[ $# -gt 0 ] || set -- -k "not numpy" $(for test in $tests; do echo "tests/$test.py"; done)
# Reports go to files, because pytest captures the output of a dying process.
if ! $fixed_layout env LD_PRELOAD="$preload" PYTHONMALLOC=malloc \
    "$work/venv/bin/python" -m pytest -q --capture=sys -p no:cacheprovider "$@" || ls report.* >/dev/null 2>&1; then
    cat report.* 2>/dev/null || true
    echo "sanitizers, $kind: failed" >&2
    exit 1
fi
echo "sanitizers, $kind: clean"
