#!/usr/bin/env bash
# Checks CITATION.cff against the schema of the Citation File Format, with the package cffconvert in an
# environment of its own. Takes half a minute, mostly for pip.
# Usage: tools/ci/citation.sh
set -euo pipefail
. "$(dirname "$0")/tree.sh"
make_venv cffconvert==2.0.0
"$work/venv/bin/cffconvert" --validate -i "$root/CITATION.cff"
echo "citation: clean"
