#!/usr/bin/env bash
# dist.sh: tries what `make dist` made, in a Debian that is made for it. The package, then the archive, is
# installed; its units are checked; the programs print their version; a client is led through a forward as the
# units have it; all is removed, and nothing may be left.
# SUITE (trixie) names the Debian, MIRROR=URL replaces the mirror that apt uses.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=SUITE,MIRROR,CARGO_TARGET_DIR "$0"
fi

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
files() { (cd "$root" && find . -xdev -path ./run -prune -o ! -path './var/lib/dpkg/*-old' "$@" -print | sort); }

debian() {
    local mirror=${MIRROR:-}
    # shellcheck disable=SC2016 # apt's own variables
    local columns='$(RELEASE) $(COMPONENT) $(CREATED_BY) $(SITE)'
    [ -n "$mirror" ] || mirror=$(apt-get indextargets --format "$columns" |
        awk '$1 !~ /-/ && $2 == "main" && $3 == "Packages" { print $4; exit }')
    [ -n "$mirror" ] || { echo "dist: apt knows no mirror of Debian; give MIRROR=URL" >&2; exit 1; }
    debootstrap --variant=minbase --include=systemd "$suite" "$root" "$mirror" >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2; exit 1; }
    mount -t proc proc "$root/proc"
    # systemctl makes it with the first socket that is enabled.
    mkdir -p "$root/etc/systemd/system/sockets.target.wants"
}

# try PREFIX: the programs below it.
try() {
    local program said
    for program in gvproxy gvforwarder; do
        said=$(inside "$1/bin/$program" -version)
        [ "$said" = "$program version v$version" ] || { echo "dist: $program is '$said'" >&2; exit 1; }
    done
    said=$(inside systemd-analyze verify --man=no gvproxy@.service gvproxy@.socket 2>&1 || echo failed)
    [ -z "$said" ] || { echo "dist: the units: $said" >&2; exit 1; }
    python3 - "$root" "$1/lib/systemd/system" <<'PYTHON'
import os, signal, socket, sys

root, units = sys.argv[1:]
NAME, NOBODY, SECONDS = "test", 65534, 30


def setting(unit, key):
    """The value of a key that is there once, with the instance's name."""
    with open(f"{root}{units}/{unit}") as lines:
        (value,) = [line.rstrip("\n").split("=", 1)[1] for line in lines if line.startswith(f"{key}=")]
    return value.replace("%i", NAME)


def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen()
    listener.settimeout(SECONDS)
    return listener


command = setting("gvproxy@.service", "ExecStart").split()
config = root + command[command.index("-config") + 1]
server, log = f"{root}/run/server.sock", f"{root}/run/gvproxy.log"
forward = root + setting("gvproxy@.socket", "ListenStream")
os.makedirs(os.path.dirname(config), exist_ok=True)
with open(config, "w") as file:
    file.write('forwards: [{socket: "fd://forward", dest: "unix:///run/server.sock"}]\n')

upstream, passed = listen(server), listen(forward)
names = setting("gvproxy@.socket", "FileDescriptorName")
daemon = os.fork()
if daemon == 0:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.dup(passed.fileno()), 3)
    os.set_inheritable(3, True)
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    listening = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": names}
    os.execve(command[0], command, listening)
failure = None
try:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(forward)
        client.sendall(b"there")
        served, _ = upstream.accept()
        served.settimeout(SECONDS)
        assert served.recv(16) == b"there"
        served.sendall(b"back")
        assert client.recv(16) == b"back"
except (AssertionError, OSError) as error:
    failure = error
os.kill(daemon, signal.SIGTERM)
status = os.waitpid(daemon, 0)[1]
with open(log) as lines:
    said = lines.read()
for path in (config, server, forward, log):
    os.unlink(path)
for path in (forward, config):
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # the package's
if status != 0 or failure:
    sys.exit(f"dist: {failure!r}; the daemon ended with {status}, and said:\n{said}")
PYTHON
}

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
files | compare "the package"

step "the archive"
files ! -type d >"$work/before"
archive=("$dist/gvproxy-$version"-*.tar.gz)
tar -C "$root/usr/local" --strip-components=1 -xzf "${archive[0]}"
try /usr/local
tar -tzf "${archive[0]}" | sed -n 's,^[^/]*/\(.*[^/]\)$,\1,p' | (cd "$root/usr/local" && xargs -d '\n' rm)
files ! -type d | compare "the archive"
step "done"
