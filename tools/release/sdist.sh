#!/usr/bin/env bash
# Proves the installation from source in clean environments: the sdist and a clone install with a C compiler
# and nothing else; without one, the message names the wheels and what to do. Takes some four minutes.
# Usage: [PYTHON=python3] tools/release/sdist.sh
set -euo pipefail
. "$(dirname "$0")/../ci/tree.sh"
copy_tree "$work/gpt2c"
git -C "$work/gpt2c" -c user.name=sdist -c user.email=sdist@example.invalid commit -q -m "a clone"
make_venv build
"$work/venv/bin/python" -m build -q --sdist -o "$work" "$work/gpt2c" >/dev/null
sdist=$(echo "$work"/gpt2c-*.tar.gz)
echo "sdist: made $(basename "$sdist"), $(stat -c %s "$sdist") bytes"

# Makes the environment $work/NAME and installs REQUIREMENT there, with only the programs of PATH. The
# output of pip goes to $work/NAME.log.
# Usage: install NAME REQUIREMENT PATH [GPT2C_BUILD]
install() {
    "$python" -m venv "$work/$1"
    PATH=$3 GPT2C_BUILD=${4:-require} "$work/$1/bin/python" -m pip install -v \
        --disable-pip-version-check --no-binary gpt2c "$2" >"$work/$1.log" 2>&1
}

# Checks that the environment $work/NAME has the compiled engine, from outside of the source tree.
has_engine() {
    (cd "$work" && "$work/$1/bin/python" -P -c '
import gpt2c
model = gpt2c.GPT2.from_pretrained()
assert model.backend != "numpy" and "site-packages" in gpt2c.__file__
print(f"sdist: the engine runs on {model.backend}:", model.generate("One day", max_new_tokens=12))')
}

# Prints a log's end, and exits.
fail() {
    echo "sdist: $1" >&2
    [ -z "${2:-}" ] || tail -n 30 "$2" >&2
    exit 1
}

# The programs that a C compiler itself consists of, and no others, such as make or git.
mkdir "$work/compiler" "$work/nothing"
for program in gcc cc as ld ld.bfd collect2 uname; do
    if path=$(command -v $program); then ln -s "$path" "$work/compiler/$program"; fi
done
install from-sdist "$sdist" "$work/compiler" || fail "pip install of the sdist failed" "$work/from-sdist.log"
has_engine from-sdist
install from-git "git+file://$work/gpt2c" "$PATH" ||
    fail "pip install of a clone failed" "$work/from-git.log"
has_engine from-git

needed="pip install --only-binary gpt2c gpt2c"
if install without-require "$sdist" "$work/nothing" require; then
    fail "it was built without a compiler" "$work/without-require.log"
fi
grep -q -- "$needed" "$work/without-require.log" ||
    fail "the error does not name the wheels" "$work/without-require.log"
install without-auto "$sdist" "$work/nothing" auto ||
    fail "without a compiler, it does not install on NumPy" "$work/without-auto.log"
grep -q -- "$needed" "$work/without-auto.log" ||
    fail "the build's output does not name the wheels" "$work/without-auto.log"
warned=$("$work/without-auto/bin/gpt2c" generate "One day" --max-new-tokens 2 2>&1 >/dev/null)
[[ $warned == *"--only-binary gpt2c gpt2c"* ]] || fail "the warning does not name the wheels: $warned"
echo "sdist: without a compiler, the message is:"
grep '^ *gpt2c: ' "$work/without-require.log"
echo "sdist: passed"
