# The other scripts source this file.

# Installs Debian's packages. Fails if that is not possible here: without root or apt-get, or offline.
install_packages() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    (export DEBIAN_FRONTEND=noninteractive &&
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@") >/dev/null 2>&1
}
