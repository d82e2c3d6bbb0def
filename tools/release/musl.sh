#!/usr/bin/env bash
# Runs the C core on musl on this machine: builds tests/c/engine_bits.c for musl and for glibc with the
# compiler of the wheels, and compares what both print on every instruction set. Takes some two minutes.
# The wheel itself needs a CPython for musl; the workflow tests it in Alpine.
# Usage: [PYTHON=python3] tools/release/musl.sh
set -euo pipefail
. "$(dirname "$0")/../ci/tree.sh"
machine=$(uname -m)
make_venv ziglang
cd "$root"
if [ -e csrc/sources.py ]; then # one system's files
    mapfile -t sources < <("$python" csrc/sources.py "linux-$machine")
else
    mapfile -t sources < <(find csrc -name '*.c')
fi
for libc in musl gnu; do
    "$work/venv/bin/python" -m ziglang cc -target "$machine-linux-$libc" -std=c11 -O2 \
        -fno-fast-math -ffp-contract=off -fno-math-errno -Icsrc "${sources[@]}" \
        tests/c/engine_bits.c -o "$work/$libc" -lm -lpthread
done
# Without arguments, the program prints the instruction sets that this CPU runs.
for isa in $("$work/musl"); do
    "$work/gnu" "$isa" 2 >"$work/gnu.bits"
    "$work/musl" "$isa" 2 >"$work/musl.bits"
    cmp "$work/gnu.bits" "$work/musl.bits"
    echo "musl: $isa: the same $(wc -l <"$work/musl.bits") digests as with glibc"
done
