#!/usr/bin/env bash
# dist.sh: tries what `make dist` made, in a Debian that is made for it. The package, then the archive, is
# installed; the programs print their version; the Debian boots, and its systemd runs the units: a socket
# whose client is led to a server, and a network. Then all is removed, and nothing may be left. SUITE (trixie)
# names the Debian, MIRROR=URL replaces the mirror that apt uses.
set -euo pipefail
umask 022
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=SUITE,MIRROR,CARGO_TARGET_DIR "$0"
fi
cd "$(dirname "$0")/.."

suite=${SUITE:-trixie}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
dist=$(realpath "${CARGO_TARGET_DIR:-target}/dist")
# In memory where it fits: dpkg syncs every file.
memory=$(df -m --output=avail /dev/shm | tail -n 1)
work=$(mktemp -d -p "$([ "$memory" -gt 1000 ] && echo /dev/shm || echo /var/tmp)" dist.XXXXXX)
root=$work/root
finish() {
    umount -l "$root/proc" "$root/sys" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

step() { printf 'dist: %s (%d s)\n' "$*" "$SECONDS"; }
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
# Every file, but for those of a running system and what dpkg writes of any package.
files() {
    (cd "$root" && find . -xdev -path ./run -prune -o ! -path './var/lib/dpkg/*-old' "$@" -print | sort)
}

debian() {
    local mirror=${MIRROR:-}
    # shellcheck disable=SC2016 # apt's own variables
    local columns='$(ORIGIN) $(RELEASE) $(COMPONENT) $(CREATED_BY) $(SITE)'
    [ -n "$mirror" ] || mirror=$(apt-get indextargets --format "$columns" |
        awk '$1 == "Debian" && $2 !~ /-/ && $3 == "main" && $4 == "Packages" { print $5; exit }')
    mirror=${mirror:-http://deb.debian.org/debian}
    debootstrap --variant=minbase --include=systemd "$suite" "$root" "$mirror" >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2; exit 1; }
    mount -t proc proc "$root/proc"
    # systemctl makes it with the first socket that is enabled.
    mkdir -p "$root/etc/systemd/system/sockets.target.wants"
}

# try PREFIX: the programs below it, then the units in this Debian, booted. What it writes is thrown away.
try() {
    local program said
    for program in gvproxy gvforwarder; do
        said=$(inside "$1/bin/$program" -version)
        [ "$said" = "$program version v$version" ] || { echo "dist: $program is '$said'" >&2; exit 1; }
    done
    said=$(inside systemd-analyze verify --man=no gvproxy@.service gvproxy@.socket 2>&1 || echo failed)
    [ -z "$said" ] || { echo "dist: the units: $said" >&2; exit 1; }
    # Debian 13 has no systemd for the first version of control groups any more.
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 \
        systemd-nspawn --register=no --keep-unit --console=pipe --volatile=overlay --private-network \
        --bind="$work/try:/run/try" --bind-ro="$work/try/try.service:/run/systemd/system/try.service" \
        --directory="$root" --boot -- --unit=try.service </dev/null >"$work/log" 2>&1 ||
        { cat "$work/log" "$work/try/log" >&2; exit 1; }
}

mkdir "$work/try"
cat >"$work/try/try.service" <<'UNIT'
[Unit]
SuccessAction=exit
FailureAction=exit
FailureActionExitStatus=1

[Service]
Type=oneshot
TimeoutStartSec=60
ExecStart=/bin/bash -c 'exec bash -eux /run/try/try.sh >/run/try/log 2>&1'
ExecStopPost=/bin/bash -c 'journalctl --no-pager --boot -u "gvproxy@*" >>/run/try/log'
UNIT
cat >"$work/try/try.sh" <<'TRY'
mkdir -p /etc/gvproxy
echo 'forwards: [{socket: "fd://forward", dest: "unix:///run/server.sock"}]' >/etc/gvproxy/forward.yaml
cat >/etc/gvproxy/network.yaml <<'YAML'
listen: ["unix:///run/gvproxy/network/api.sock"]
interfaces: {qemu: "unix:///run/gvproxy/network/qemu.sock"}
stack: {forwards: {"127.0.0.1:2222": "192.168.127.2:22"}}
YAML

# ask SOCKET WORDS: the beginning of the answer.
ask() {
    perl -MIO::Socket::UNIX -e '
        my $socket = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!;
        syswrite($socket, $ARGV[1]);
        sysread($socket, my $answer, 15);
        print $answer' "$@"
}

# A server that listens before it goes into the background.
perl -MIO::Socket::UNIX -e '
    umask 0;
    my $server = IO::Socket::UNIX->new(Local => "/run/server.sock", Listen => 5) or die $!;
    exit if fork;
    while (my $client = $server->accept) {
        sysread($client, my $words, 15);
        syswrite($client, "$words and back");
    }'
systemctl start gvproxy@forward.socket
[ "$(systemctl is-active gvproxy@forward.service)" = inactive ]
[ "$(ask /run/gvproxy/forward.sock there)" = 'there and back' ]
systemctl restart gvproxy@forward.service
[ "$(ask /run/gvproxy/forward.sock again)" = 'again and back' ]

systemctl start gvproxy@network.service
timeout 30 bash -c 'until [ -S /run/gvproxy/network/qemu.sock ]; do sleep 0.1; done'
[ "$(ask /run/gvproxy/network/api.sock $'GET /stats HTTP/1.1\r\nHost: d\r\n\r\n')" = 'HTTP/1.1 200 OK' ]

systemctl stop gvproxy@forward.socket gvproxy@forward.service gvproxy@network.service
for service in forward network; do
    [ "$(systemctl show -P Result "gvproxy@$service.service")" = success ]
done
[ -z "$(ls -A /run/gvproxy)" ]
TRY

# The same files as before it was installed?
compare() {
    diff "$work/before" - || { echo "dist: of $1 these files are left (>), or are gone (<)" >&2; exit 1; }
}

step "a Debian $suite"
debian

step "the package"
files >"$work/before"
cp "$dist"/gvproxy-rs_"${version}"_*.deb "$work/"
package=("$work"/gvproxy-rs_*.deb)
dpkg --root="$root" -i "${package[@]}" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
try /usr
inside systemctl enable --quiet gvproxy@test.socket
dpkg --root="$root" -r gvproxy-rs >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
# Its script for afterwards stays until it is purged.
files | grep -v '^\./var/lib/dpkg/info/gvproxy-rs\.\(list\|postrm\)$' | compare "the package"
dpkg --root="$root" -P gvproxy-rs >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
files | compare "the purged package"

step "the archive"
files ! -type d >"$work/before"
archive=("$dist/gvproxy-$version"-*.tar.gz)
tar -C "$root/usr/local" --strip-components=1 -xzf "${archive[0]}"
try /usr/local
tar -tzf "${archive[0]}" | sed -n 's,^[^/]*/\(.*[^/]\)$,\1,p' | (cd "$root/usr/local" && xargs -d '\n' rm)
files ! -type d | compare "the archive"
step "done"
