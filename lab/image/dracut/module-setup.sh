#!/bin/bash
# The initrd of a netbooted machine: plain systemd without dracut's own scripts,
# which under emulation take longer than everything else together.

check() {
    return 255
}

depends() {
    echo systemd-initrd ignition base
}

installkernel() {
    hostonly='' instmods virtio_pci virtio_net virtio_blk virtio_rng qemu_fw_cfg loop squashfs overlay
}

install() {
    inst_multiple curl openssl mkfs.ext4 blkid lsblk sgdisk partx wipefs udevadm useradd usermod groupadd \
        mount umount mkdir rm cat stat sleep ip ping journalctl systemctl networkctl
    mkdir -p "$initdir/etc/systemd/system.conf.d"
    printf '[Manager]\nShowStatus=auto\n' >"$initdir/etc/systemd/system.conf.d/rackweft.conf"
    inst_simple /etc/login.defs
    inst_simple /etc/mke2fs.conf
    inst_simple /etc/ssl/certs/ca-certificates.crt

    # networkd without its D-Bus and sysusers companions.
    inst_multiple \
        "$systemdutildir/systemd-networkd" \
        "$systemdutildir/systemd-networkd-wait-online" \
        "$systemdnetwork/99-default.link" \
        "$systemdsystemunitdir/systemd-networkd.service" \
        "$systemdsystemunitdir/systemd-networkd.socket" \
        "$systemdsystemunitdir/systemd-networkd-wait-online.service"

    inst_script "$moddir/rackweft-network" /usr/lib/rackweft/network
    inst_script "$moddir/rackweft-rootfs" /usr/lib/rackweft/rootfs
    inst_script "$moddir/rackweft-root" /usr/lib/rackweft/root
    inst_script "$moddir/rackweft-files" /usr/lib/rackweft/files
    inst_script "$moddir/rackweft-enable" /usr/lib/rackweft/enable
    inst_script "$moddir/rackweft-failed" /usr/lib/rackweft/failed
    # Ignition asks this whether there is a disk to install to.
    ln_r /usr/bin/true /usr/bin/is-live-image
    mkdir -p "$initdir/usr/lib/modules-load.d"
    printf '%s\n' virtio_pci virtio_net virtio_blk loop squashfs overlay \
        >"$initdir/usr/lib/modules-load.d/rackweft.conf"

    local unit
    for unit in rackweft-network.service rackweft-rootfs.service rackweft-enable.service emergency.service; do
        inst_simple "$moddir/$unit" "$systemdsystemunitdir/$unit"
    done
    inst_simple "$moddir/online.conf" "$systemdsystemunitdir/ignition-fetch.service.d/online.conf"
    inst_simple "$moddir/secrets.conf" "$systemdsystemunitdir/ignition-.service.d/secrets.conf"
    inst_simple "$moddir/files.conf" "$systemdsystemunitdir/ignition-files.service.d/rackweft.conf"
    inst_simple "$moddir/wait-online.conf" "$systemdsystemunitdir/systemd-networkd-wait-online.service.d/rackweft.conf"
    inst_simple "$moddir/networkd.conf" "$systemdsystemunitdir/systemd-networkd.service.d/rackweft.conf"
    inst_simple "$moddir/parse-etc.conf" "$systemdsystemunitdir/initrd-parse-etc.service.d/rackweft.conf"
    inst_simple "$moddir/udev-trigger.conf" "$systemdsystemunitdir/systemd-udev-trigger.service.d/rackweft.conf"
    $SYSTEMCTL -q --root "$initdir" add-requires initrd-root-fs.target rackweft-rootfs.service
    $SYSTEMCTL -q --root "$initdir" add-wants ignition-complete.target rackweft-enable.service
    $SYSTEMCTL -q --root "$initdir" add-wants network-online.target systemd-networkd-wait-online.service
    trim
}

# What dracut's modules bring along and this boot never needs.
trim() {
    local unit
    for unit in systemd-ask-password-console.path systemd-sysctl.service kmod-static-nodes.service; do
        rm -f "$initdir$systemdsystemunitdir/sysinit.target.wants/$unit"
    done
    rm -f "$initdir$systemdsystemunitdir/sockets.target.wants/systemd-journald-audit.socket" \
        "$initdir$systemdutildir"/system-generators/systemd-{gpt-auto,debug,fstab}-generator \
        "$initdir"/etc/udev/udev.hwdb "$initdir"/usr/lib/udev/hwdb.bin \
        "$initdir"/usr/lib/udev/rules.d/{60-cdrom_id,61-persistent-storage,59-persistent-storage,99-xx-ignition-systemd-cryptsetup,64-btrfs}.rules
}
