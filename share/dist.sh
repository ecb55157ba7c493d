#!/usr/bin/env bash
# dist.sh: static programs for Linux with what belongs to them, in target/dist:
#   gvproxy-VERSION-ARCH-linux-musl.tar.gz   for `tar -C /usr/local --strip-components=1 -xzf FILE`
#   gvproxy-rs_VERSION_ARCH.deb              for dpkg and apt; Debian's own package `gvproxy` is the original
# Both have gvproxy, gvforwarder, manual pages, completions, units of systemd and the documents.
# The same commit gives the same files. SOURCE_DATE_EPOCH is the commit's time, unless it is given.
#
# Needs what `tests/install.sh dist` installs: Debian's Rust compiler, with the source of std, which is
# built for musl; and zig, which is the linker, the C compiler and musl.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

target=$(uname -m)-unknown-linux-musl
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
# The order of sorted names is everybody's.
export LC_ALL=C
[ -n "${SOURCE_DATE_EPOCH:-}" ] || SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
out=${CARGO_TARGET_DIR:-target}/dist
programs=${CARGO_TARGET_DIR:-target}/$target/release
crates=${CARGO_HOME:-$HOME/.cargo}
tools=$PWD/tests/guest/cache/python/bin
# Compiler and source have to be of one version, as Debian's packages are: not rustup's, which may come first.
export PATH=$tools:/usr/bin:$PATH
unset RUSTC
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() {
    local variable=${target//-/_}
    # Without `link-self-contained=no` rustc looks for a start file that only rustup's musl has.
    local program headers flags="-C link-self-contained=no"
    # Else panics name directories of whoever built it.
    flags+=" --remap-path-prefix=$crates=cargo --remap-path-prefix=$PWD=gvproxy"
    RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_STRIP=debuginfo \
        env "CARGO_TARGET_${variable^^}_RUSTFLAGS=$flags" \
        cargo-zigbuild zigbuild --locked --release -Z build-std --target "$target" -p gvproxy --bins
    for program in gvproxy gvforwarder; do
        headers=$(readelf -lW "$programs/$program")
        if [[ $headers == *INTERP* ]]; then
            echo "dist.sh: $program is not static" >&2
            exit 1
        fi
    done
}

# What is in the programs, and under which licences: each text once.
third_parties() {
    local line name release file sum lines tree
    local -A seen
    echo 'gvproxy is under the Apache License, version 2.0: see LICENSE beside this file.'
    echo 'In the programs are the Rust standard library (MIT OR Apache-2.0), musl (MIT), and these crates:'
    tree=$(cargo tree --locked -p gvproxy -e normal,no-proc-macro --target "$target" \
        --prefix none --no-dedupe -f '{p} {l}' | grep -v ' (/' | sort -u)
    mapfile -t lines <<<"$tree"
    printf '    %s\n' "${lines[@]}"
    for file in "$tools"/../lib/python*/site-packages/ziglang/lib/libc/musl/COPYRIGHT; do
        printf '\n==== musl\n'
        cat "$file"
    done
    for line in "${lines[@]}"; do
        read -r name release _ <<<"$line"
        for file in "$crates"/registry/src/*/"$name-${release#v}"/{LICEN[CS]E,COPYING,COPYRIGHT,NOTICE}*; do
            [ -f "$file" ] || continue
            sum=$(sha256sum <"$file")
            [ -z "${seen[$sum]-}" ] || continue
            seen[$sum]=1
            printf '\n==== %s %s, %s\n' "$name" "$release" "${file##*/}"
            cat "$file"
        done
    done
}

# lay_out ROOT PREFIX NAME ZSH: all files below ROOT/PREFIX, documents as NAME's, zsh's completions in ZSH.
lay_out() {
    local bin=$2/bin prefix=$1$2 name=$3 zsh=$4 unit
    install -D -m 755 -t "$prefix/bin" "$programs/gvproxy" "$programs/gvforwarder"
    install -D -m 644 -t "$prefix/share/man/man1" share/man/man1/*
    install -D -m 644 -t "$prefix/share/bash-completion/completions" share/bash-completion/completions/*
    install -D -m 644 -t "$prefix/share/fish/vendor_completions.d" share/fish/vendor_completions.d/*
    install -D -m 644 -t "$prefix/$zsh" share/zsh/site-functions/*
    install -D -m 644 -t "$prefix/share/doc/$name" ./*.md LICENSE "$work/THIRD-PARTIES"
    install -D -m 644 -t "$prefix/share/doc/$name/docs" docs/*
    mkdir -p "$prefix/lib/systemd/system"
    for unit in share/systemd/*; do
        sed "s,/usr/bin/,$bin/," "$unit" >"$prefix/lib/systemd/system/${unit##*/}"
    done
}

archive() {
    local name=gvproxy-$version-${target/-unknown/}
    lay_out "$work/tar" /usr/local gvproxy share/zsh/site-functions
    mv "$work/tar/usr/local" "$work/tar/$name"
    tar -C "$work/tar" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - \
        "$name" | gzip -9n >"$out/$name.tar.gz"
    echo "$out/$name.tar.gz"
}

package() {
    local root=$work/deb architecture file
    architecture=$(dpkg --print-architecture)
    file=$out/gvproxy-rs_${version}_$architecture.deb
    lay_out "$root" /usr gvproxy-rs share/zsh/vendor-completions
    gzip -9n "$root"/usr/share/man/man1/*
    # The name by which Debian's policy has it.
    mv "$root/usr/share/doc/gvproxy-rs/THIRD-PARTIES" "$root/usr/share/doc/gvproxy-rs/copyright"
    mkdir -p "$root/etc/gvproxy" "$root/DEBIAN"
    cat >"$root/DEBIAN/control" <<CONTROL
Package: gvproxy-rs
Version: $version
Architecture: $architecture
Maintainer: the maintainers of gvproxy in Rust
Installed-Size: $(du -sk --apparent-size "$root/usr" | cut -f 1)
Section: net
Priority: optional
Provides: gvproxy
Conflicts: gvproxy
Replaces: gvproxy
Suggests: podman, qemu-system
Description: network of virtual machines, and their sockets on the host
 gvproxy takes the Ethernet frames of a virtual machine from its hypervisor, and
 is the network behind them, in one unprivileged process. It brings ports and
 sockets out of the machine, such as podman.sock, and sockets of the host into it.
CONTROL
    cat >"$root/DEBIAN/postinst" <<'POSTINST'
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
POSTINST
    cat >"$root/DEBIAN/postrm" <<'POSTRM'
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
POSTRM
    # Links of `systemctl enable` are no files of the package's.
    cat >"$root/DEBIAN/prerm" <<'PRERM'
#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
[ ! -d /run/systemd/system ] || systemctl stop 'gvproxy@*.socket' 'gvproxy@*.service'
[ ! -d /etc/systemd/system ] || find /etc/systemd/system -type l -path '*.wants/gvproxy@*' -delete
PRERM
    chmod 755 "$root"/DEBIAN/{postinst,prerm,postrm}
    dpkg-deb --root-owner-group -Zxz --build "$root" "$file" >/dev/null
    echo "$file"
}

build
mkdir -p "$out"
third_parties >"$work/THIRD-PARTIES"
archive
package
