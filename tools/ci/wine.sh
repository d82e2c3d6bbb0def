#!/usr/bin/env bash
# Compiles the C core for Windows x86-64 and runs it under Wine: the functions of the operating system,
# and the bits of all instruction sets. Also compiles it for the other platforms, with every warning an
# error. Takes about five minutes. Installs Debian's Wine if it can; makes an environment of its own.
# Usage: tools/ci/wine.sh
set -euo pipefail
. "$(dirname "$0")/packages.sh"
wine=/usr/lib/wine/wine64 # where Debian's package has it
if [ ! -x "$wine" ]; then
    if [ "$(uname -m)" != x86_64 ] || ! install_packages wine64; then
        echo "wine: skipped: wine64 is not here and cannot be installed"
        exit 0
    fi
fi

. "$(dirname "$0")/tree.sh"
copy_tree "$work/gpt2c"
cd "$work/gpt2c"
GPT2C_BUILD=require make_venv -e ".[test]" ziglang
for target in x86_64-windows-gnu:win-amd64 aarch64-windows-gnu:win-arm64 x86_64-macos:macosx-11.0-x86_64 \
    aarch64-macos:macosx-11.0-arm64 x86_64-linux-musl:linux-x86_64 aarch64-linux-gnu:linux-aarch64; do
    mkdir "$work/$target"
    CC="$work/venv/bin/python -m ziglang cc -target ${target%%:*}" PLATFORM=${target#*:} \
        tools/ci/warnings.sh "$work/$target"
    echo "wine: the C core compiles for ${target%%:*}"
done
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_windows.py
echo "wine: clean ($("$wine" --version))"
