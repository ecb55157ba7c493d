#!/usr/bin/env bash
# install.sh GROUP...: the Debian packages that a make target needs, as far as their commands are missing, and
# what cargo has to build and pip to fetch for it, in tests/guest/cache. Groups: demo, test, bench,
# instructions, lint, dist, cross, windows. Quiet when nothing is missing; asks for root through sudo otherwise.
# Without apt it says what is missing; up to there it is written for bash 3.2, as macOS has it.
set -euo pipefail
cache=$(cd "$(dirname "$0")" && pwd)/guest/cache

# A command that must be there, and the package that brings it.
table() {
    case $1 in
    build) echo 'cc gcc
                 /usr/include/stdio.h libc6-dev' ;;
    demo) table build; echo 'qemu-system-x86_64 qemu-system-x86
                 debootstrap debootstrap
                 /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
                 mke2fs e2fsprogs
                 ssh openssh-client
                 podman podman
                 curl curl' ;;
    test) table demo; echo 'docker docker-cli|docker.io
                 sshd openssh-server
                 dropbear dropbear-bin
                 openssl openssl
                 ip iproute2
                 udhcpc udhcpc
                 python3 python3
                 systemd-tmpfiles systemd
                 systemd-socket-activate systemd
                 strace strace
                 patchelf patchelf
                 pivot_root util-linux-extra
                 unbound unbound
                 tcpdump tcpdump
                 vhost-device-vsock cargo:vhost-device-vsock@0.3.0'; table instructions ;;
    instructions) table build; echo 'valgrind valgrind' ;;
    lint) table build; echo 'shellcheck shellcheck
                             cargo-deny cargo:cargo-deny@0.20.2' ;;
    zig) table build; echo '/usr/lib/rustlib/src/rust/library/std rust-web-src|rust-src
                            /usr/bin/cargo cargo-web|cargo
                            /usr/bin/rustc rustc-web|rustc
                            python3 python3
                            /var/lib/dpkg/info/python3-venv.list python3-venv
                            cargo-zigbuild pip:cargo-zigbuild==0.24.0
                            python-zig pip:ziglang==0.17.1' ;;
    dist) table zig; echo 'dpkg-deb dpkg
                           debootstrap debootstrap
                           systemd-nspawn systemd-container' ;;
    cross) table zig; echo 'qemu-aarch64 qemu-user' ;;
    windows) table build; echo '/usr/lib/rustlib/src/rust/library/std rust-web-src|rust-src
                                /usr/bin/cargo cargo-web|cargo
                                /usr/bin/rustc rustc-web|rustc
                                x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64-win32
                                wine wine
                                /var/lib/dpkg/info/wine64.list wine64' ;;
    bench) table build; echo 'ip iproute2
                 ssh-keygen openssh-client
                 sshd openssh-server
                 udhcpc udhcpc
                 socat socat
                 systemd-socket-activate systemd
                 passt passt
                 slirp4netns slirp4netns' ;;
    *) echo "install.sh: no group named '$1' (demo, test, bench, instructions, lint, dist, cross, windows)" >&2; exit 2 ;;
    esac
}

# their MANAGER PACKAGE: what Fedora (dnf) and Arch (pacman) call Debian's package; nothing if they have none.
their() {
    case $1:$2 in
    :*) echo "$2" ;;
    dnf:libc6-dev) echo glibc-devel ;;
    dnf:debian-archive-keyring) echo debian-keyring ;;
    dnf:qemu-system-x86) echo qemu-system-x86-core ;;
    dnf:openssh-client) echo openssh-clients ;;
    dnf:docker-cli*) echo docker-cli ;;
    dnf:iproute2) echo iproute ;;
    dnf:shellcheck) echo ShellCheck ;;
    pacman:libc6-dev) echo glibc ;;
    pacman:openssh-*) echo openssh ;;
    pacman:docker-cli*) echo docker ;;
    pacman:python3) echo python ;;
    *:dropbear-bin) echo dropbear ;;
    *:util-linux-extra) echo util-linux ;;
    *:udhcpc) ;;
    *) echo "$2" ;;
    esac
}

give_up() {
    cat >&2 <<EOT
install.sh: $1
With Rust and a C compiler these run without it:
  cargo build --release
  cargo test -p gvproxy-netstack
  cargo test -p gvproxy-qmp --lib
EOT
    exit 1
}

elsewhere() {
    local manager='' words="by Debian's names:" package name names='' none=''
    if command -v dnf >/dev/null; then manager=dnf words='sudo dnf install'; fi
    if command -v pacman >/dev/null; then manager=pacman words='sudo pacman -S'; fi
    for package in "${missing[@]}"; do
        name=$(their "$manager" "$package")
        case "$names " in *" $name "*) continue ;; esac
        if [ -n "$name" ]; then names="$names $name"; else none="$none $package"; fi
    done
    give_up "packages are installed only where there is apt-get (Debian 12, 13, sid).
Missing here: ${commands[*]}
To install: $words$names${none:+
Without a package there:$none}"
}

[[ " $* " == *" dist "* || " $* " == *" cross "* ]] || command -v cargo >/dev/null || { echo "install.sh: there is no cargo; https://rustup.rs installs it" >&2; exit 1; }
[ "$(uname -s)" = Linux ] || give_up "the demo and the tests need Linux: namespaces, and QEMU of that system"

PATH=$PATH:/usr/sbin:/sbin:$cache/bin:$cache/python/bin
export DEBIAN_FRONTEND=noninteractive
missing=() commands=() crates=() wheels=()
for group in "$@"; do
    rows=$(table "$group")
    while read -r command package; do
        if [[ $command == /* && -e $command ]] || command -v "$command" >/dev/null; then continue; fi
        case $package in
        cargo:*) crates+=("${package#cargo:}") ;;
        pip:*) wheels+=("${package#pip:}") ;;
        *) missing+=("$package") commands+=("$command") ;;
        esac
    done <<<"$rows"
done
[ $((${#missing[@]} + ${#crates[@]} + ${#wheels[@]})) -gt 0 ] || exit 0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
say() { echo "install: $*"; }
quietly() { "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; return 1; }; }

install_packages() {
    command -v apt-get >/dev/null || elsewhere
    root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=DEBIAN_FRONTEND "$@"; fi; }
    candidate() { apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }

    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    say "installing ${missing[*]}"
    quietly root apt-get -q update

    local package choice found packages=() unknown=()
    for package in "${missing[@]}"; do
        # Alternatives stand in order of preference: from Debian 13 on, docker's client has its own package.
        found=''
        for choice in ${package//|/ }; do
            [ -z "$(candidate "$choice")" ] || { found=$choice; break; }
        done
        [ -n "$found" ] || { unknown+=("$package"); continue; }
        packages+=("$found")
        # A newer qemu-utils (backports) cannot stand beside an older QEMU; keep it by letting it follow.
        if [ "$choice" = qemu-system-x86 ] && dpkg -s qemu-utils >/dev/null 2>&1; then
            packages+=("qemu-utils=$(candidate "$choice")")
        fi
    done

    [ ${#unknown[@]} = 0 ] || give_up "apt knows no package ${unknown[*]} (Debian 12, 13 and sid have them)"

    # The tests start their own sshd and unbound: the packages' services stay down while they are installed.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f "$log"; root rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' | root tee /usr/sbin/policy-rc.d >/dev/null
        root chmod 755 /usr/sbin/policy-rc.d
    fi
    quietly root apt-get -q -y --no-install-recommends --no-remove --allow-downgrades install "${packages[@]}"
}

[ ${#missing[@]} = 0 ] || install_packages
for crate in "${crates[@]}"; do
    say "building $crate (a minute or two)"
    # They run for seconds: what their own slow links gain is lost in building.
    settings=(CARGO_PROFILE_RELEASE_{LTO=off,CODEGEN_UNITS=16,OPT_LEVEL=0})
    [[ $crate == cargo-deny@* ]] || settings+=(CARGO_PROFILE_RELEASE_OPT_LEVEL=1)
    quietly env "${settings[@]}" cargo install --locked --root "$cache" "$crate"
done
if [ ${#wheels[@]} -gt 0 ]; then
    say "fetching ${wheels[*]} (100 MB)"
    quietly python3 -m venv "$cache/python"
    quietly "$cache/python/bin/pip" install --disable-pip-version-check "${wheels[@]}"
fi
