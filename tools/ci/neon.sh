#!/usr/bin/env bash
# The NEON kernels under qemu: installs Debian's cross compiler and emulator where it can.
# Usage: tools/ci/neon.sh [python of an environment with the test extra]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(command -v "${1:-.venv/bin/python}")
if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
        ! (apt-get update -qq && apt-get install -y -qq --no-install-recommends \
            gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user) >/dev/null 2>&1; then
        echo "neon: skipped: the cross compiler and qemu-user are not here and cannot be installed"
        exit 0
    fi
fi
"$python" -m pytest -q tests/test_neon.py
