#!/usr/bin/env bash
# Compiles the C core with every warning an error.
# Usage: [CC=compiler] [PLATFORM=platform] tools/ci/warnings.sh FOLDER
# The objects go to FOLDER. A cross compiler needs PLATFORM; csrc/sources.py describes it.
set -euo pipefail
objects=${1:?usage: [CC=compiler] tools/ci/warnings.sh FOLDER}
cd "$(dirname "$0")/../.."
for source in $("${PYTHON:-python3}" csrc/sources.py ${PLATFORM:+"$PLATFORM"}); do
    ${CC:-cc} -std=c11 -O2 -ffp-contract=off -Wall -Wextra -Wshadow -Wpointer-arith \
        -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wno-sign-conversion -Werror \
        -Icsrc -c "$source" -o "$objects/$(basename "$source").o"
done
