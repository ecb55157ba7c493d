#!/usr/bin/env bash
# cross.sh [TARGET...]: builds the programs for other systems than this one, where a warning is an error; and
# runs the unit tests of those that can be run here. Without arguments for all: macOS on both processors,
# which Linux can link but not run, and Linux on arm64, which QEMU runs.
#
# Needs what `tests/install.sh cross` installs: Debian's Rust compiler, with the source of std, which is built
# for each; zig, which is the linker and has the C libraries; and QEMU's emulation of one program.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("$@")
[ $# -gt 0 ] || targets=(aarch64-apple-darwin x86_64-apple-darwin aarch64-unknown-linux-musl)
# Compiler and source have to be of one version, as Debian's packages are: not rustup's, which may come first.
export PATH=$PWD/tests/guest/cache/python/bin:/usr/bin:$PATH
unset RUSTC
export RUSTC_BOOTSTRAP=1 CARGO_BUILD_WARNINGS=deny
# The oldest that Rust builds for; and no question to xcrun, which is not here: zig has what is linked.
export MACOSX_DEPLOYMENT_TARGET=11.0 SDKROOT=/
# Without it rustc looks for a start file that only rustup's musl has.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C link-self-contained=no"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64

zigbuild() { cargo-zigbuild "$1" -Z build-std -Z warnings --locked --target "$target" "${@:2}"; }

for target in "${targets[@]}"; do
    echo "cross: $target (${SECONDS} s)"
    zigbuild zigbuild -p gvproxy --bins
    case $target in
    *-linux-*)
        zigbuild test --profile ci -p gvproxy-netstack -p gvproxy-qmp --lib
        # Without what QEMU does not do as the kernel would: SO_ACCEPTCONN, names of abstract sockets, credentials,
        # reads that may not wait, splice.
        zigbuild test --profile ci -p gvproxy --lib -- --skip listen:: --skip relay:: \
            --skip a_peek_tells_who_it_was_and_takes_nothing --skip of_a_huge_file_so_much_is_read
        ;;
    esac
done
echo "cross: done (${SECONDS} s)"
