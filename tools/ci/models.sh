#!/usr/bin/env bash
# Checks the models of the thread pool and of the running batch (tools/soak/*.pml) in their quick form.
set -euo pipefail
exec "$(dirname "$0")/../soak/models.sh" quick
