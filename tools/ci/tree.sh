# Sourced by the scripts beside this: a copy of the working tree and an environment, both in a
# temporary folder $work, so that neither a checkout nor its .venv is ever changed.
# Set PYTHON to use an interpreter other than python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy does not lie beside the folder shared/.
if [ -z "${GPT2C_SHARED:-}" ] && [ -d "$root/../shared" ]; then
    GPT2C_SHARED=$(cd "$root/../shared" && pwd)
    export GPT2C_SHARED
fi

# Copies to $1 what a commit of everything here would hold, as a git repository where there is git.
copy_tree() {
    local file files=()
    mkdir -p "$1"
    while IFS= read -r -d '' file; do
        if [ -e "$root/$file" ]; then files+=("$file"); fi # tracked files may be deleted
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

# Makes the environment $work/venv and installs the arguments there with pip.
make_venv() {
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" install -q --disable-pip-version-check "$@"
}
