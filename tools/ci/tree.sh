# The other scripts source this file. It makes a copy of the working tree and an environment, both in a
# temporary folder $work, so that neither the checkout nor its .venv is changed.
# Set PYTHON to use an interpreter other than python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The copy is not next to the folder shared/, so export its path.
if [ -z "${GPT2C_SHARED:-}" ] && [ -d "$root/../shared" ]; then
    GPT2C_SHARED=$(cd "$root/../shared" && pwd)
    export GPT2C_SHARED
fi

# Copies to $1 all files that are tracked or not ignored, as a git repository if the checkout is one.
copy_tree() {
    local file files=()
    mkdir -p "$1"
    while IFS= read -r -d '' file; do
        if [ -e "$root/$file" ]; then files+=("$file"); fi # skip deleted files
    done < <(git -C "$root" -c safe.directory='*' \
        ls-files -z --cached --others --exclude-standard 2>/dev/null || true)
    if [ ${#files[@]} -gt 0 ]; then
        printf '%s\0' "${files[@]}" | tar -C "$root" --null -T - -cf - | tar -C "$1" -xf -
        git -C "$1" init -q
        git -C "$1" add -A
    else
        tar -C "$root" --exclude='./.*' --exclude=./build --exclude=./dist --exclude='*.so' \
            --exclude=__pycache__ --exclude='*.egg-info' -cf - . | tar -C "$1" -xf -
        cp "$root/.clang-format" "$1"
    fi
}

# Creates the environment $work/venv and installs the arguments there with pip.
make_venv() {
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" install -q --disable-pip-version-check "$@"
}
