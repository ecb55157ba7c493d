#!/usr/bin/env bash
# demo.sh GVPROXY: boots the guest behind the daemon and shows what a user gets: the podman of the guest on a
# unix socket of the host. Everything ends with it, or stays with KEEP=1. Read next: guest/boot.sh.
set -euo pipefail

gvproxy=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
key=$here/guest/cache/id_ed25519
image=localhost/busybox:test
dir=$(mktemp -d /tmp/gvproxy-demo.XXXXXX)
qemu='' daemon=''

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
show() { printf '$ %s\n' "$*"; "$@"; }
fail() {
    printf '\ndemo: %s\n' "$*" >&2
    tail -n 20 "$dir"/{gvproxy,qemu,console}.log >&2 || true
    exit 1
}
running() { kill -0 "$1" 2>/dev/null; }
finish() {
    [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    wait
    rm -rf "$dir"
}
trap finish EXIT

port=2222
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

say "the daemon"
command=("$gvproxy" -listen-qemu "unix://$dir/qemu.sock" -ssh-port "$port" -pid-file "$dir/gvproxy.pid"
    -forward-sock "$dir/podman.sock" -forward-dest /run/user/1000/podman/podman.sock
    -forward-user core -forward-identity "$key")
echo "\$ ${command[*]}"
"${command[@]}" </dev/null >"$dir/gvproxy.log" 2>&1 &
daemon=$!
for _ in {1..100}; do
    [ ! -S "$dir/qemu.sock" ] || break
    running "$daemon" || fail "the daemon has ended"
    sleep 0.1
done

say "a VM joins its socket"
echo "\$ qemu-system-x86_64 ... -netdev stream,id=vlan,addr.type=unix,addr.path=$dir/qemu.sock \\
      -device virtio-net-pci,netdev=vlan,mac=5a:94:ef:e4:0c:ee"
"$here/guest/boot.sh" "$dir/qemu.sock" "$dir/console.log" </dev/null >"$dir/qemu.log" 2>&1 &
qemu=$!
start=$SECONDS
ping=(curl -fsS --unix-socket "$dir/podman.sock" http://d/v4.0.0/libpod/_ping)
until "${ping[@]}" --max-time 3 >/dev/null 2>&1; do
    running "$qemu" || fail "QEMU has ended"
    running "$daemon" || fail "the daemon has ended"
    [ $((SECONDS - start)) -lt 180 ] || fail "no answer from podman in 180 s"
    if [ -t 1 ]; then printf '\rbooting: %d s ' $((SECONDS - start)); else printf '.'; fi
    sleep 0.5
done
printf '\rbooted, and podman answers after %d s\n' $((SECONDS - start))

say "its podman on this host's socket"
show "${ping[@]}"
echo
podman=(podman --url "unix://$dir/podman.sock")
show "${podman[@]}" info --format 'podman {{.Version.Version}} on {{.Host.Hostname}}: kernel {{.Host.Kernel}}, rootless {{.Host.Security.Rootless}}'
show "${podman[@]}" version --format 'client {{.Client.Version}}, server {{.Server.Version}}'
show "${podman[@]}" load -i "$here/guest/cache/busybox.tar"
show "${podman[@]}" run --rm --network none "$image" uname -a

say "a shell in the VM"
ssh=(ssh -p "$port" -i "$key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR core@127.0.0.1)
show "${ssh[@]}" 'id -un; ip -4 -brief address; getent hosts host.containers.internal'

if [ -n "${KEEP:-}" ]; then
    trap - EXIT
    cat <<EOT

== left running
  ${ssh[*]}
  podman --url unix://$dir/podman.sock ps
  DOCKER_HOST=unix://$dir/podman.sock docker ps
To stop it: kill $qemu; rm -r $dir
EOT
    exit 0
fi

say "the VM goes, and the daemon with it"
kill "$qemu"
wait "$qemu" || true
status=0
wait "$daemon" || status=$?
echo "the daemon's exit status: $status; left in $dir: $(cd "$dir" && find . -name '*.sock' -o -name '*.pid')"
qemu='' daemon=''
say "done"
