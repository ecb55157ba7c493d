#!/usr/bin/env bash
# build.sh: the virtual machine of the demo and the tests, made from Debian packages into tests/guest/cache:
#   vmlinuz, initrd.img   for QEMU's -kernel and -initrd
#   root.img              ext4, label "guest"; boot.sh never writes to it
#   id_ed25519            the key that the users core (uid 1000) and root accept
#   busybox.tar           a container image, localhost/busybox:test, for `podman load`
# podman's API sockets are /run/user/1000/podman/podman.sock and /run/podman/podman.sock; `podman machine` can boot it
# as well. Makes nothing when everything is up to date. MIRROR=URL replaces the mirror that this machine's apt uses. Read next: boot.sh.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
out=$here/cache
packages=(
    systemd systemd-sysv systemd-resolved udev dbus dbus-user-session libpam-systemd kmod sudo
    openssh-server
    podman crun catatonit netavark aardvark-dns nftables iptables uidmap slirp4netns fuse-overlayfs
    iproute2 iputils-ping iperf3 curl bind9-dnsutils socat busybox-static jq strace
)

step() { printf 'guest: %s (%d s)\n' "$*" "$SECONDS"; }

inputs() { sha256sum "$here/build.sh"; find "$here/files" -type f -exec sha256sum {} + | sort; }
stamp=$(inputs | sed "s,$here/,," | sha256sum)
if [ -f "$out/stamp" ] && [ "$(cat "$out/stamp")" = "$stamp" ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=MIRROR "$0"
fi
mkdir -p "$out"
rm -f "$out/stamp"

# In memory where it fits: dpkg syncs every file.
work=$(mktemp -d -p "$([ "$(df -m --output=avail /dev/shm | tail -n 1)" -gt 2500 ] && echo /dev/shm || echo /var/tmp)" guest.XXXXXX)
root=$work/root
finish() {
    umount -l "$root/proc" "$root/sys" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    chown -R --reference="$here" "$out"
}
trap finish EXIT
in_guest() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin ${http_proxy:+http_proxy="$http_proxy"} "$@"; }

# The packages, kept from one build to the next: only this list and this function decide what they are.
base=$out/base-$(echo "${packages[*]}" | sha256sum | cut -c -12).tar
if [ -f "$base" ]; then
    step "unpacking the Debian system made before"
    mkdir "$root"
    tar -C "$root" --xattrs --xattrs-include='*' -xpf "$base"
else
    step "a Debian system with podman (about a minute)"
    # shellcheck disable=SC2016 # apt's own variables
    mirror=${MIRROR:-$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(CREATED_BY) $(SITE)' |
        awk '$1 == "bookworm" && $2 == "main" && $3 == "Packages" { print $4; exit }')}
    [ -n "$mirror" ] || { echo "guest: apt knows no mirror of bookworm; give MIRROR=URL" >&2; exit 1; }
    list=$(IFS=,; echo "${packages[*]}")
    debootstrap --variant=minbase --include="$list" bookworm "$root" "$mirror" >"$out/build.log" 2>&1 ||
        { tail -n 20 "$out/build.log" >&2; exit 1; }
    step "its kernel"
    # Unpacked instead of installed: the package would draw in a maker of initrds.
    cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
    # shellcheck disable=SC2016 # the guest's shell expands it
    in_guest sh -euc '
        cd /tmp
        apt-get -q download "$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-.*\)/\1/p" | head -n 1)"
        dpkg-deb -x linux-image-*.deb kernel
        mv kernel/boot/vmlinuz-* /boot/
        mv kernel/lib/modules /usr/lib/
        rm -r linux-image-*.deb kernel
    ' >>"$out/build.log" 2>&1 || { tail -n 20 "$out/build.log" >&2; exit 1; }
    rm -rf "$root"/usr/share/{doc,man,locale,info} "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
        "$root"/lib/modules/*/kernel/{sound,drivers/{ata,gpu,infiniband,media,nvme,scsi,usb}}
    rm -f "$out"/base-*
    tar -C "$root" --xattrs --xattrs-include='*' -cpf "$base.part" .
    mv "$base.part" "$base"
fi

step "its settings"
[ -f "$out/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C guest -f "$out/id_ed25519"
version=$(basename "$root"/lib/modules/*)
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
' "$version" >>"$out/build.log" 2>&1 || { tail -n 20 "$out/build.log" >&2; exit 1; }
for home in root home/core; do
    install -d -m 700 "$root/$home/.ssh"
    install -m 600 "$out/id_ed25519.pub" "$root/$home/.ssh/authorized_keys"
done
chown -R 1000:1000 "$root/home/core"

step "the initrd: busybox and the modules that reach the disk and the settings of \`podman machine\`"
initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,lib,root}
cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
cp "$root/bin/busybox" "$initrd/bin/"
modules=$(in_guest modprobe --set-version "$version" --show-depends --all virtio_pci virtio_blk virtio_console qemu_fw_cfg | awk '$1 == "insmod" && !seen[$2]++ { print $2 }')
for module in $modules; do
    cp "$root$module" "$initrd/lib/"
done
cat >"$initrd/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
$(for module in $modules; do echo "insmod /lib/${module##*/}"; done)
until [ -b /dev/vda ]; do usleep 20000; done
mount -t ext4 -o noatime /dev/vda /root
config=/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw
[ ! -e \$config ] || chroot /root /usr/local/sbin/ignition <\$config
umount /sys /proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
INIT
chmod 755 "$initrd/init"
(cd "$initrd" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null) >"$out/initrd.img"

step "a container image"
layer=$work/layer
mkdir -p "$layer"/{bin,etc,tmp,www,proc,sys,dev} "$work/image"
cp "$root/bin/busybox" "$layer/bin/"
for applet in $("$root/bin/busybox" --list); do
    [ -e "$layer/bin/$applet" ] || ln -s busybox "$layer/bin/$applet"
done
echo 'root:x:0:0:root:/:/bin/sh' >"$layer/etc/passwd"
echo 'hello from a container' >"$layer/www/index.html"
tar -C "$layer" --sort=name --mtime=@0 --owner=0 --group=0 -cf "$work/image/layer.tar" .
cat >"$work/image/config.json" <<JSON
{
  "architecture": "amd64",
  "os": "linux",
  "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
  "rootfs": { "type": "layers", "diff_ids": ["sha256:$(sha256sum "$work/image/layer.tar" | cut -c -64)"] }
}
JSON
cat >"$work/image/manifest.json" <<JSON
[{ "Config": "config.json", "RepoTags": ["localhost/busybox:test"], "Layers": ["layer.tar"] }]
JSON
tar -C "$work/image" -cf "$out/busybox.tar" config.json layer.tar manifest.json

step "the disk"
truncate -s 4G "$work/root.img"
mke2fs -q -t ext4 -L guest -m 0 -O '^has_journal,^metadata_csum' -d "$root" "$work/root.img"
cp --sparse=always "$work/root.img" "$out/root.img"
echo "$stamp" >"$out/stamp"
step "done"
