#!/usr/bin/env bash
# Tests the completion scripts in bash, zsh and fish, and the man page with mandoc. Installs Debian's
# packages if it can; a test skips itself if its program is missing. Takes minutes, mostly for pip.
# Usage: tools/ci/shells.sh [install | python of an environment with the extra test]
# With "install" it only installs: the README's pytest then runs these tests with all others.
# Without an argument, it creates an environment of its own.
set -euo pipefail
. "$(dirname "$0")/packages.sh"
missing=
for program in bash zsh fish mandoc; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # one argument for each package
    install_packages $missing || echo "shells: skipped:$missing cannot be installed here"
fi
if [ "${1:-}" = install ]; then exit 0; fi
if [ $# -gt 0 ]; then
    cd "$(dirname "$0")/../.."
    shells_python=$1
else
    . "$(dirname "$0")/tree.sh"
    copy_tree "$work/gpt2c"
    GPT2C_BUILD=skip make_venv "$work/gpt2c[test]"
    cd "$work/gpt2c"
    shells_python=$work/venv/bin/python
fi
"$shells_python" -m pytest -q -p no:cacheprovider tests/test_completion.py tests/test_man_page.py
