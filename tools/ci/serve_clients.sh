#!/usr/bin/env bash
# Runs the clients of openai, LangChain, llama-index and lm-eval against gpt2c serve, checks its OpenAPI
# page, and runs two servers behind Debian's nginx, in an environment of its own.
# Usage: tools/ci/serve_clients.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/packages.sh"
if ! [ -x /usr/sbin/nginx ] && ! command -v nginx >/dev/null; then
    install_packages nginx-light || echo "serve_clients: skipped: nginx cannot be installed here"
fi
. "$(dirname "$0")/tree.sh"

copy_tree "$work/gpt2c"
cd "$work/gpt2c"
# lm-eval needs no torch for its model "local-completions".
make_venv openai==2.54.0 langchain-openai==1.7.4 llama-index-llms-openai-like==0.8.1 \
    'lm-eval[api]==0.4.13' openapi-spec-validator jsonschema pytest hypothesis
GPT2C_BUILD=require "$work/venv/bin/pip" install -q '.[serve]'

# The tests skip themselves if one of these is missing; here that is a failure.
"$work/venv/bin/python" -c 'import jsonschema, langchain_openai, lm_eval, openai, openapi_spec_validator
import llama_index.llms.openai_like
from gpt2c.engine import _engine
print("openai", openai.__version__, "lm-eval", lm_eval.__version__, "engine:",
      _engine.instruction_sets())'
export HF_HUB_OFFLINE=1 # the tests use no network but this machine's
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_serve_clients.py \
    tests/test_serve_openapi.py tests/test_serve_proxy.py "$@"
echo "serve_clients: clean"
