#!/usr/bin/env bash
# windows.sh PROFILE: the programs for Windows, built here and run by Wine: their unit tests, and the program at
# work (tests/windows), in a network and with resolvers of its own. For what Wine is not, see COMPAT.md.
#
# Needs what `tests/install.sh windows` installs: Debian's Rust compiler, with the source of std, which is built
# for Windows; mingw, which links; and Wine.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=$1
target=x86_64-pc-windows-gnu
built=${CARGO_TARGET_DIR:-$PWD/target}
work=$built/wine

# Compiler and source have to be of one version, as Debian's packages are: not rustup's, which may come first.
windows_cargo() {
    env -u RUSTC PATH="/usr/bin:$PATH" RUSTC_BOOTSTRAP=1 CARGO_BUILD_WARNINGS=deny \
        cargo "$1" -Z build-std=std,panic_unwind,test -Z warnings --locked --target $target -p gvproxy --no-default-features \
        --features win-sshproxy --profile windows "${@:2}"
}

echo "windows: programs (${SECONDS} s)"
windows_cargo build --bins
windows_cargo test --lib --bins --no-run
mkdir -p "$work"
x86_64-w64-mingw32-gcc -O2 -Wall -Werror -s -o "$work/client.exe" tests/windows/client.c

# Wine has its world in one directory. The library that it lacks (Wine 8.0) is one call.
export WINEPREFIX=$work/prefix WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='
server=$(command -v wineserver || echo /usr/lib/wine/wineserver)
finish() { "$server" -k 2>/dev/null || true; }
trap finish EXIT
if [ ! -e "$work/made" ]; then
    rm -rf "$WINEPREFIX"
    wine wineboot -i >/dev/null 2>&1
    # Windows that nobody sees, without an X server.
    wine reg add 'HKCU\Software\Wine\Drivers' /v Graphics /d null /f >/dev/null 2>&1
    x86_64-w64-mingw32-gcc -O2 -s -shared -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" \
        tests/windows/bcryptprimitives.c -ladvapi32
    "$server" -w
    touch "$work/made"
fi

echo "windows: unit tests (${SECONDS} s)"
mapfile -t tests < <(windows_cargo test --lib --bins --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\.exe\)".*/\1/p')
[ "${#tests[@]}" -ge 2 ] || { echo "windows.sh: found no unit tests" >&2; exit 1; }
for test in "${tests[@]}"; do
    # Left out: what takes minutes because Wine's sockets do.
    wine "$test" --skip a_thousand_share_a_few_pipes --skip what_a_service_sent_waits_for_its_client \
        --skip ssh::backlog
done
"$server" -k || true

# A program of Windows by its name, as others are run.
programs=$work/bin
mkdir -p "$programs"
for name in gvproxy win-sshproxy client; do
    exe=$built/$target/windows/$name.exe
    [ $name != client ] || exe=$work/client.exe
    printf '#!/bin/sh\nexec wine %s "$@"\n' "'$exe'" >"$programs/$name"
    chmod +x "$programs/$name"
done

echo "windows: programs at work (${SECONDS} s)"
cargo test --workspace --profile "$profile" --test windows --no-run
test=$(cargo test --workspace --profile "$profile" --test windows --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*windows-[^"]*\)".*/\1/p')
echo 'nameserver 127.0.0.1' >"$work/resolv.conf"
user=()
unshare --net --mount true 2>/dev/null || user=(--user --map-root-user)
# shellcheck disable=SC2016
WINDOWS_PROGRAMS=$programs unshare "${user[@]}" --net --mount sh -c '
    ip link set lo up
    mount --bind "$1/resolv.conf" /etc/resolv.conf
    exec "$2"' sh "$work" "$test"
echo "windows: done (${SECONDS} s)"
