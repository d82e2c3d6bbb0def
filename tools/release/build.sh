#!/usr/bin/env bash
# Builds the sdist and the wheels of all targets on this Linux machine, with the C compiler of the
# package ziglang. Takes about ten minutes on two cores; the last commit's time is the time of all files.
# Usage: [PYTHON=python3] tools/release/build.sh OUT [target...]
# OUT is a folder for the files, which must be empty or new. The targets are in targets.py.
set -euo pipefail
out=${1:?usage: tools/release/build.sh OUT [target...]}
shift
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
if [ -n "$(ls -A "$out")" ]; then
    echo "build: $out is not empty" >&2
    exit 2
fi
out=$(cd "$out" && pwd)
. "$here/../ci/tree.sh"
make_venv "setuptools>=80,<90" "Cython>=3.3,<4" build ziglang abi3info
"$work/venv/bin/python" "$here/build.py" --work "$(mktemp -d -p "$work")" "$out" "$@"
(cd "$out" && sha256sum ./*)
