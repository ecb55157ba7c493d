#!/usr/bin/env bash
# build.sh [--is-there] [SUITE...]: the virtual machines of the demo and the tests, made from Debian packages
# into tests/guest/cache, one for each suite (trixie and bookworm without arguments):
#   SUITE/vmlinuz, SUITE/initrd.img   for QEMU's -kernel and -initrd
#   SUITE/root.img                    ext4, label "guest"; boot.sh never writes to it
#   SUITE/root                        the same system as a tree, for programs of the host: the tests run its
#                                     podman machine and its QEMU
#   id_ed25519                        the key that the users core (uid 1000) and root accept
#   busybox.tar                       a container image, localhost/busybox:test, for `podman load`
# podman's API sockets are /run/user/1000/podman/podman.sock and /run/podman/podman.sock; `podman machine` can
# boot it as well. Makes nothing when everything is up to date; --is-there only says by its status whether it
# is. MIRROR=URL replaces the mirror: that of this machine's apt on Debian, deb.debian.org elsewhere. Read
# next: boot.sh.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
out=$here/cache
is_there=
if [ "${1:-}" = --is-there ]; then is_there=1; shift; fi
# The demo boots trixie, and so do the tests but for those that want podman 4.3, QEMU 7.2, or vsock.
[ $# -gt 0 ] || set -- trixie bookworm
packages() {
    echo systemd systemd-sysv systemd-resolved udev dbus dbus-user-session libpam-systemd kmod sudo \
        openssh-server openssh-client \
        podman crun catatonit netavark aardvark-dns nftables iptables uidmap fuse-overlayfs \
        iproute2 iputils-ping iperf3 curl bind9-dnsutils socat busybox-static jq strace \
        qemu-system-x86 qemu-utils
    # What podman gives a rootless container its network with.
    if [ "$1" = bookworm ]; then echo slirp4netns; else echo passt; fi
}

# On a terminal cargo's bar may stand in the line: it builds beside this.
step() {
    [ ! -t 1 ] || printf '\r\033[K'
    printf 'guest: %s: %s (%d s)\n' "$suite" "$*" "$SECONDS"
}

inputs() { sha256sum "$here/build.sh"; find "$here/files" -type f -exec sha256sum {} + | sort; }
stamp=$(inputs | sed "s,$here/,," | sha256sum)
stale=()
for suite; do
    [ "$(cat "$out/$suite/stamp" 2>/dev/null)" = "$stamp" ] || stale+=("$suite")
done
[ ${#stale[@]} -gt 0 ] || exit 0
[ -z "$is_there" ] || exit 1
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=MIRROR "$0" "${stale[@]}"
fi
mkdir -p "$out"

# In memory where it fits: dpkg syncs every file.
work=$(mktemp -d -p "$([ "$(df -m --output=avail /dev/shm | tail -n 1)" -gt 3500 ] && echo /dev/shm || echo /var/tmp)" guest.XXXXXX)
root=$work/root
finish() {
    umount -l "$root/proc" "$root/sys" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    chown -R --reference="$here" "$out"
}
trap finish EXIT
in_guest() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin ${http_proxy:+http_proxy="$http_proxy"} "$@"; }
tree() { tar -C "$1" --xattrs --xattrs-include='*' "${@:2}"; }
[ -f "$out/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C guest -f "$out/id_ed25519"

apts_mirror() {
    command -v apt-get >/dev/null || return 0
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(COMPONENT) $(CREATED_BY) $(SITE)' |
        awk '$1 == "Debian" && $2 !~ /-/ && $3 == "main" && $4 == "Packages" { print $5; exit }'
}

# phases LOG: debootstrap's output into LOG; says when it begins to do something else.
phases() {
    local said='' line verb
    while read -r line; do
        printf '%s\n' "$line"
        verb=${line#I: }
        verb=${verb%% *}
        case $verb in
        Retrieving | Extracting | Unpacking | Configuring) ;;
        *) continue ;;
        esac
        case $said in *$verb*) continue ;; esac
        said+=$verb
        step "${verb,} packages" >&2
    done >"$1"
}

# debian SUITE LIST: that system in $root, as its packages leave it.
debian() {
    local suite=$1 list=$2 mirror
    mirror=${MIRROR:-$(apts_mirror)}
    mirror=${mirror:-http://deb.debian.org/debian}
    debootstrap --variant=minbase --include="${list// /,}" "$suite" "$root" "$mirror" 2>&1 | phases "$log" ||
        { tail -n 20 "$log" >&2; exit 1; }
    # The kernel is unpacked instead of installed: the package would draw in a maker of initrds.
    cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
    # shellcheck disable=SC2016 # the guest's shell expands it
    in_guest sh -euc '
        cd /tmp
        apt-get -q download "$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-.*\)/\1/p" | head -n 1)"
        dpkg-deb -x linux-image-*.deb kernel
        mv kernel/boot/vmlinuz-* /boot/
        if [ -d kernel/usr/lib/modules ]; then mv kernel/usr/lib/modules /usr/lib/; else mv kernel/lib/modules /usr/lib/; fi
        rm -r linux-image-*.deb kernel
    ' >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }
    rm -rf "$root"/usr/share/{doc,man,locale,info} "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
        "$root"/usr/lib/modules/*/kernel/{sound,drivers/{ata,gpu,infiniband,media,nvme,scsi,usb}}
}

# settings VERSION: what makes it the tests' machine, with the kernel of that version.
settings() {
    cp -r "$here/files/." "$root/"
    echo guest >"$root/etc/hostname"
    printf '127.0.0.1 localhost guest\n' >"$root/etc/hosts"
    echo 'LABEL=guest / ext4 rw,noatime 0 0' >"$root/etc/fstab"
    : >"$root/etc/machine-id"
    ln -sf /run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"
    rm -f "$root"/etc/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C guest -f "$root/etc/ssh/ssh_host_ed25519_key"
    # shellcheck disable=SC2016 # the guest's shell expands it
    in_guest sh -euc '
        depmod "$0"
        useradd --create-home --uid 1000 --shell /bin/bash core
        mkdir -p /var/lib/systemd/linger
        touch /var/lib/systemd/linger/core
        echo "core ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/core
        systemctl --quiet enable systemd-networkd systemd-resolved ssh podman.socket echo.socket
        systemctl --quiet --global enable podman.socket
        systemctl --quiet set-default multi-user.target
        systemctl --quiet disable iperf3 nftables podman podman-restart
        systemctl --quiet --global disable podman podman-restart
        systemctl --quiet mask systemd-networkd-wait-online.service systemd-update-utmp.service getty@tty1.service \
            apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
            podman-auto-update.service podman-auto-update.timer
        systemctl --quiet --global mask podman-auto-update.service podman-auto-update.timer
        touch /etc/default/locale
    ' "$1" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }
    for home in root home/core; do
        install -d -m 700 "$root/$home/.ssh"
        install -m 600 "$out/id_ed25519.pub" "$root/$home/.ssh/authorized_keys"
    done
    chown -R 1000:1000 "$root/home/core"
}

# boot_files VERSION DIRECTORY: the kernel, and an initrd of busybox and the modules that reach the disk and
# the settings of `podman machine`.
boot_files() {
    local initrd=$work/initrd modules module
    rm -rf "$initrd"
    mkdir -p "$initrd"/{bin,dev,proc,sys,lib,root}
    cp "$root/boot/vmlinuz-$1" "$2/vmlinuz"
    cp "$root/bin/busybox" "$initrd/bin/"
    modules=$(in_guest modprobe --set-version "$1" --show-depends --all virtio_pci virtio_blk virtio_console qemu_fw_cfg |
        awk '$1 == "insmod" && !seen[$2]++ { print $2 }')
    for module in $modules; do
        case $module in
        *.xz) "$root/bin/busybox" unxz -c "$root$module" >"$initrd/lib/$(basename "$module" .xz)" ;;
        *) cp "$root$module" "$initrd/lib/" ;;
        esac
    done
    cat >"$initrd/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
$(for module in $modules; do echo "insmod /lib/$(basename "$module" .xz)"; done)
until [ -b /dev/vda ]; do usleep 20000; done
mount -t ext4 -o noatime /dev/vda /root
config=/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw
[ ! -e \$config ] || chroot /root /usr/local/sbin/ignition <\$config
umount /sys /proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
INIT
    chmod 755 "$initrd/init"
    (cd "$initrd" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null) >"$2/initrd.img"
}

# container_image BUSYBOX: busybox.tar.
container_image() {
    local layer=$work/layer image=$work/image applet
    mkdir -p "$layer"/{bin,etc,tmp,www,proc,sys,dev} "$image"
    cp "$1" "$layer/bin/"
    for applet in $("$1" --list); do
        [ -e "$layer/bin/$applet" ] || ln -s busybox "$layer/bin/$applet"
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$layer/etc/passwd"
    echo 'hello from a container' >"$layer/www/index.html"
    tar -C "$layer" --sort=name --mtime=@0 --owner=0 --group=0 -cf "$image/layer.tar" .
    cat >"$image/config.json" <<JSON
{
  "architecture": "amd64",
  "os": "linux",
  "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
  "rootfs": { "type": "layers", "diff_ids": ["sha256:$(sha256sum "$image/layer.tar" | cut -c -64)"] }
}
JSON
    cat >"$image/manifest.json" <<JSON
[{ "Config": "config.json", "RepoTags": ["localhost/busybox:test"], "Layers": ["layer.tar"] }]
JSON
    tar -C "$image" -cf "$out/busybox.tar" config.json layer.tar manifest.json
    rm -r "$layer" "$image"
}

for suite in "${stale[@]}"; do
    place=$out/$suite log=$out/$suite/build.log
    mkdir -p "$place"
    rm -f "$place/stamp"
    list=$(packages "$suite" | xargs)
    # Kept from one build to the next: only the list and the function decide what it is.
    base=$place/base-$( (declare -f debian; echo "$list") | sha256sum | cut -c -12).tar
    if [ -f "$base" ]; then
        step "unpacking the system made before"
        mkdir "$root"
        tree "$root" -xpf "$base"
    else
        step "a Debian with podman and QEMU"
        debian "$suite" "$list"
        rm -f "$place"/base-*
        tree "$root" -cf "$base.part" .
        mv "$base.part" "$base"
        rm -rf "$place/root"
    fi
    if [ ! -d "$place/root" ]; then
        rm -rf "$place/root.part"
        mkdir "$place/root.part"
        # Whoever uses it may not be root: there is nothing in it that only root may read.
        tree "$place/root.part" --exclude=./dev --exclude=./usr/lib/modules --no-same-owner -xf "$base"
        chmod -R u=rwX,go=rX "$place/root.part"
        printf '127.0.0.1 localhost\n' >"$place/root.part/etc/hosts"
        mv "$place/root.part" "$place/root"
    fi
    step "its settings, kernel and disk"
    version=$(basename "$root"/usr/lib/modules/*)
    settings "$version"
    boot_files "$version" "$place"
    truncate -s 4G "$work/root.img"
    mke2fs -q -t ext4 -L guest -m 0 -O '^has_journal,^metadata_csum' -d "$root" "$work/root.img"
    cp --sparse=always "$work/root.img" "$place/root.img"
    container_image "$root/bin/busybox"
    rm -rf --one-file-system "$root" "$work/root.img"
    echo "$stamp" >"$place/stamp"
    step "done"
done
