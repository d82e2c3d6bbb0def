#!/usr/bin/env bash
# Checks the sdist and the wheels that build.sh made: tags, METADATA, RECORD, equal contents, and of each
# extension the machine, the oldest system, the libraries and every symbol that it imports.
# Takes about a minute.
# Usage: [PYTHON=python3] tools/release/check.sh FOLDER
set -euo pipefail
folder=$(cd "${1:?usage: tools/release/check.sh FOLDER}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../ci/tree.sh"
make_venv abi3audit auditwheel installer lief packaging twine
bin=$work/venv/bin
failed=0
"$bin/twine" check --strict "$folder"/* || failed=1
"$bin/python" "$here/check.py" "$folder"/*.whl || failed=1
"$bin/abi3audit" --strict --assume-minimum-abi3 3.11 "$folder"/*.whl || failed=1
for wheel in "$folder"/*linux_*.whl; do
    [ -e "$wheel" ] || continue
    tag=$(basename "$wheel" .whl)
    tag=${tag##*-}
    # auditwheel names the oldest tag that the wheel satisfies.
    shown=$("$bin/auditwheel" show "$wheel" 2>&1 | tr -s ' \n' ' ')
    if [[ $shown != *"platform tag: \"$tag\""* ]]; then
        echo "check: $(basename "$wheel"): auditwheel says: $shown"
        failed=1
    fi
done
[ $failed = 0 ] || exit 1
echo "check: all wheels passed"
