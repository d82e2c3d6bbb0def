#!/usr/bin/env bash
# Checks the model of the thread pool (tools/soak/pool.pml) in its quick form.
set -euo pipefail
exec "$(dirname "$0")/../soak/pool_model.sh" quick
