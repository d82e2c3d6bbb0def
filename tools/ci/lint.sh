#!/usr/bin/env bash
# Style and types of the Python, style of the C core, and the C core with every warning an error.
# Usage: tools/ci/lint.sh [python of an environment with the extras test and dev]
# Without one it makes an environment of its own.
set -euo pipefail
if [ $# -gt 0 ]; then
    cd "$(dirname "$0")/../.."
    lint_python=$1
    objects=$(mktemp -d)
    trap 'rm -rf "$objects"' EXIT
else
    . "$(dirname "$0")/tree.sh"
    copy_tree "$work/gpt2c"
    GPT2C_BUILD=skip make_venv "$work/gpt2c[test,dev]"
    "$work/venv/bin/pip" uninstall -q -y gpt2c # only the sources are checked
    cd "$work/gpt2c"
    lint_python=$work/venv/bin/python objects=$work/objects
    mkdir "$objects"
fi

"$lint_python" -m ruff check .
"$lint_python" -m ruff format --check .
for platform in linux darwin win32; do # each finds names that this system's Python lacks
    "$lint_python" -m mypy --platform "$platform" --cache-dir ".mypy_cache/$platform"
done

find csrc tests/c -name '*.[ch]' -exec \
    "$(dirname "$lint_python")/clang-format" --dry-run --Werror {} +
tools/ci/warnings.sh "$objects"
echo "lint: clean"
