#!/usr/bin/env bash
# Tests the NEON kernels under qemu. Installs Debian's cross compiler and emulator if it can.
# Usage: tools/ci/neon.sh [install | python of an environment with the extra test]
# With "install" it only installs: the README's pytest then runs this test with all others.
# Without an argument, it creates an environment of its own.
set -euo pipefail
. "$(dirname "$0")/packages.sh"
if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    if ! install_packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; then
        echo "neon: skipped: the cross compiler and qemu-user cannot be installed here"
        exit 0
    fi
fi
if [ "${1:-}" = install ]; then
    echo "neon: the cross compiler and qemu-user are here"
    exit 0
fi
if [ $# -gt 0 ]; then
    cd "$(dirname "$0")/../.."
    neon_python=$1
else
    . "$(dirname "$0")/tree.sh"
    copy_tree "$work/gpt2c"
    GPT2C_BUILD=require make_venv "$work/gpt2c[test]"
    cd "$work/gpt2c"
    neon_python=$work/venv/bin/python
fi
"$neon_python" -m pytest -q tests/test_neon.py
