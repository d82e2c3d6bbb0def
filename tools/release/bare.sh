#!/usr/bin/env bash
# Proves a Linux wheel in a bare Debian without a compiler: installs the wheel with its dependencies,
# generates a first text, prints the digests and runs the quick tests. Prints the time of an environment, of
# the installation, of the first text, of these three together, and of the quick tests.
# Takes five to ten minutes, most of it to make the Debian; under an emulator, half an hour.
# Needs root and mmdebstrap, and for another machine's Debian qemu-user-static; it installs both if it can.
# Usage: tools/release/bare.sh FOLDER SUITE [ARCH [PYTHON]]
#   FOLDER holds the wheels of build.sh, SUITE is bookworm, trixie or sid, ARCH is amd64 (default) or arm64,
#   PYTHON is a version that the suite has, such as 3.14; default: the suite's own.
#   BARE_ROOT=FILE  uses the tar file FILE as the Debian, or makes it if it does not exist
#   QUICK=core      runs only the smallest group of the quick tests (quick.sh)
set -euo pipefail
usage="usage: tools/release/bare.sh FOLDER SUITE [ARCH [PYTHON]]"
folder=$(cd "${1:?$usage}" && pwd)
suite=${2:?$usage}
arch=${3:-amd64}
version=${4:-}
name="bare: $suite $arch python${version:-3}"
. "$(dirname "$0")/../ci/packages.sh"
. "$(dirname "$0")/../ci/tree.sh"
case $arch in
amd64) machine=x86_64 ;;
arm64) machine=aarch64 ;;
*) echo "bare: the machine $arch is unknown" >&2 && exit 2 ;;
esac
wheel=$(echo "$folder"/gpt2c-*-manylinux_*_"$machine".whl)
[ -e "$wheel" ] || { echo "bare: $folder has no wheel for $arch" >&2 && exit 2; }

skip() {
    echo "$name: skipped: $1"
    exit 0
}

[ "$(id -u)" = 0 ] || skip "only root can make a Debian"
needed=(mmdebstrap)
if [ "$(uname -m)" != "$machine" ]; then needed+=(qemu-user-static); fi
if ! dpkg -s "${needed[@]}" >/dev/null 2>&1; then
    install_packages "${needed[@]}" || skip "${needed[*]} cannot be installed"
fi

# The kernel runs the other machine's programs with qemu once it is told to; this stays so until the
# next start. The flag F opens the emulator now, so that it need not exist in the Debian.
if [ "$(uname -m)" != "$machine" ] && [ ! -e /proc/sys/fs/binfmt_misc/qemu-"$machine" ]; then
    if [ ! -e /proc/sys/fs/binfmt_misc/register ]; then
        mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || skip "no binfmt_misc"
    fi
    [ "$machine" = aarch64 ] || skip "qemu is not registered for $machine"
    elf='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    echo ":qemu-aarch64:M::$elf:$mask:/usr/bin/qemu-aarch64-static:F" \
        >/proc/sys/fs/binfmt_misc/register || skip "qemu cannot be registered"
fi

debian=$work/debian
mkdir "$debian"
tar_file=${BARE_ROOT:-$work/debian.tar}
if [ ! -e "$tar_file" ]; then
    SECONDS=0
    # A mirror that is updated rarely has a list of sid whose few days of validity are over.
    mmdebstrap --quiet --arch="$arch" --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        --include="python${version:-3}-venv,ca-certificates" "$suite" "$tar_file"
    echo "$name: made the Debian in $SECONDS s"
fi
tar -C "$debian" --exclude='./dev/*' -xf "$tar_file"
mkdir "$debian/proof"
cp "$wheel" "$root/tools/release/digest.py" "$root/tools/release/quick.sh" \
    "$root/tools/release/quick.txt" "$root/pyproject.toml" "$debian/proof"
cp -r "$root/tests" "$debian/proof/tests"
cp /etc/resolv.conf "$debian/etc/"
# pip inside uses this machine's certificates and settings.
cp /etc/ssl/certs/ca-certificates.crt "$debian/etc/ssl/certs/"
cp /etc/pip.conf "$debian/etc/" 2>/dev/null || true

cat >"$debian/proof/prove.sh" <<'PROVE'
set -euo pipefail
cd /proof
for compiler in cc gcc clang tcc; do
    ! command -v $compiler || { echo "there is a compiler" && exit 1; }
done
TIMEFORMAT='%1R s, of them %1U s and %1S s of CPU time (user, system)'
time { # from nothing to the first text
    time "python$1" -m venv env
    time env/bin/pip install -q --disable-pip-version-check --only-binary :all: ./gpt2c-*.whl
    time env/bin/gpt2c generate "One day" --max-new-tokens 20
}
env/bin/python -c 'import platform; print(platform.libc_ver(), platform.python_version())'
env/bin/python digest.py
env/bin/pip install -q --disable-pip-version-check --only-binary :all: pytest hypothesis regex
time bash quick.sh env/bin/python
PROVE
# An own mount namespace, so that nothing stays mounted.
unshare --mount --pid --fork bash -euo pipefail -c '
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    exec chroot "$0" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        PIP_ROOT_USER_ACTION=ignore ${QUICK:+QUICK="$QUICK"} bash /proof/prove.sh "$1"
' "$debian" "${version:-3}" 2>&1 | sed -u "s/^/$name: /"
