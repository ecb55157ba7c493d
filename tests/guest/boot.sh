#!/usr/bin/env bash
# boot.sh SOCKET CONSOLE [QEMU-ARGUMENT...]: becomes the QEMU that runs the guest of build.sh, with its one
# network card on the daemon's unix socket SOCKET and its serial console written to the file CONSOLE. Nothing
# that the guest writes is kept. Where SOCKET is `-`, disk, network and size are among the arguments, as
# `podman machine` gives them. GUEST=bookworm boots the machine of Debian 12 instead of 13's. ACCEL=kvm|tcg
# replaces the choice made here, CPU, SMP and MEM (MiB) the machine's size, MAC its hardware address.
# VSOCK=SOCKET gives it a vsock device, served at that socket: by vhost-device-vsock, which reads the
# machine's memory and therefore shares it. Without arguments it only finds out what the next boot would wait
# for: whether KVM works, and QEMU's file.
set -euo pipefail

cache=$(cd "$(dirname "$0")" && pwd)/cache
guest=$cache/${GUEST:-trixie}
if [ ! -f "$guest/stamp" ]; then
    echo "boot.sh: there is no guest of ${guest##*/} yet: run 'make guest'" >&2
    exit 1
fi
machine=(qemu-system-x86_64 -nodefaults -no-user-config -display none -M q35 -kernel "$guest/vmlinuz")

# KVM can be present and of no use (in a nested machine, for one): it counts once a kernel has spoken under
# it. The answer holds until the host boots again.
kvm_works() {
    [ -w /dev/kvm ] || return 1
    local answer boot
    boot=$(cat /proc/sys/kernel/random/boot_id)
    if [ "$(sed -n 1p "$cache/kvm" 2>/dev/null)" != "$boot" ]; then
        answer=no
        if timeout 5 "${machine[@]}" -accel kvm -cpu host -m 256 -no-reboot -serial stdio \
            -append 'console=ttyS0 panic=-1' </dev/null 2>/dev/null | grep -q 'Linux version'; then
            answer=yes
        fi
        printf '%s\n%s\n' "$boot" "$answer" >"$cache/kvm.$$"
        mv "$cache/kvm.$$" "$cache/kvm"
    fi
    [ "$(sed -n 2p "$cache/kvm")" = yes ]
}

if [ $# = 0 ]; then
    kvm_works || true
    exec qemu-system-x86_64 -version
fi
socket=$1 console=$2
shift 2
if [ -z "${ACCEL:-}" ]; then
    if kvm_works; then ACCEL=kvm; else ACCEL=tcg; fi
fi
case $ACCEL in
kvm) machine+=(-accel kvm -cpu "${CPU:-host}") ;;
tcg)
    machine+=(-accel "tcg,thread=multi,tb-size=512" -cpu "${CPU:-qemu64}")
    # Emulated processors that run at once may see an instruction half patched in the kernel's first seconds
    # ("Oops: int3"): it starts again.
    kernel='panic=-1 '
    ;;
*) echo "boot.sh: ACCEL is kvm or tcg, not '$ACCEL'" >&2; exit 1 ;;
esac

machine+=(-initrd "$guest/initrd.img" -serial "file:$console"
    -append "${kernel:-}console=ttyS0 quiet mitigations=off audit=0 apparmor=0 no_timer_check systemd.show_status=0")
if [ "$socket" != - ]; then
    MEM=${MEM:-1536}
    machine+=(-smp "${SMP:-2}" -m "$MEM"
        -drive "file=$guest/root.img,format=raw,if=none,id=root,snapshot=on,cache=unsafe" -device "virtio-blk-pci,drive=root"
        -netdev "stream,id=vlan,server=off,addr.type=unix,addr.path=$socket"
        -device "virtio-net-pci,netdev=vlan,mac=${MAC:-5a:94:ef:e4:0c:ee}")
    [ -z "${VSOCK:-}" ] || machine+=(
        -object "memory-backend-memfd,id=mem,size=${MEM}M,share=on" -machine memory-backend=mem
        -chardev "socket,id=vsock,path=$VSOCK" -device "vhost-user-vsock-pci,chardev=vsock")
fi
# The last device: the guest counts them, and `podman machine` counts on that.
exec "${machine[@]}" "$@" -device virtio-rng-pci
