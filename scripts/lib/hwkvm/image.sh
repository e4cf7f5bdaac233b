# What scripts/hwkvm boots, made once and kept in the cache: a QEMU, and a Debian with its stock kernel on a root disk.
# Sourced.
[[ -z ${hwkvm_image_sourced:-} ]] || return 0
hwkvm_image_sourced=1
: "${FTD_ROOT:=$(cd "${BASH_SOURCE[0]%/*}/../../.." && pwd)}"
source "$FTD_ROOT/scripts/lib/cache.sh"
source "$FTD_ROOT/scripts/lib/debian-suite.sh"
source "$FTD_ROOT/scripts/lib/debian-tree.sh"

hwkvm_files=$FTD_ROOT/scripts/lib/hwkvm
# What the scripts want that are run there: `network` and `disk-guest` of setup.sh, and what boots it.
hwkvm_packages=(kmod mount util-linux iproute2 nftables procps bsdextrautils jq gawk e2fsprogs sqlite3
    ethtool iputils-ping)
# TCG before that does not intercept XSETBV: a guest with XSAVE crashes its host.
hwkvm_qemu_min=9
# Drivers and file systems of hardware that QEMU does not show it.
hwkvm_unused=(drivers/{gpu,media,infiniband,usb,staging,scsi,iio,hwmon,input,platform,isdn,mtd,ata,bluetooth} sound
    drivers/net/{ethernet,wireless,usb} fs/{ocfs2,ceph,nfsd,smb,ksmbd,gfs2,jfs,reiserfs,f2fs})

# hwkvm_image_for: sets hwkvm_qemu, the command that starts QEMU, and hwkvm_image, the directory with vmlinuz, initrd
# and root.ext4. Where that cannot be made, the script says so and ends with 77. Not to be called in a condition
# (`cached`).
hwkvm_image_for() {
    local version
    ((EUID == 0)) || hwkvm_skip 'this needs root'
    setup_need hwkvm
    hwkvm_suite=$(source /etc/os-release && [[ $ID == debian ]] && echo "$VERSION_CODENAME") ||
        hwkvm_skip 'this host is no Debian'
    command -v qemu-system-x86_64 >/dev/null || hwkvm_skip 'qemu-system-x86_64 is not there although its package is'
    version=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
    if ((version >= hwkvm_qemu_min)); then
        hwkvm_qemu=(qemu-system-x86_64)
    else
        local unpacked
        unpacked=$(cached "qemu-$hwkvm_suite-backports-1" hwkvm_fetch_qemu)
        hwkvm_qemu=("$unpacked/usr/bin/qemu-system-x86_64" -L "$unpacked/usr/share/qemu"
            -L "$unpacked/usr/share/seabios")
    fi
    hwkvm_tree=$(debian_tree "${hwkvm_packages[@]}")
    hwkvm_kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    [[ $hwkvm_kernel ]] || hwkvm_skip 'apt knows no linux-image-amd64'
    hwkvm_image=$(cached "$(printf '%s\n' "$hwkvm_kernel" "${hwkvm_tree##*/}" |
        cache_key hwkvm "$hwkvm_files"/{image.sh,init,early-init})" hwkvm_fill)
}

hwkvm_skip() { say_error "SKIPPED ${0##*/}: $*" && exit 77; }

# Fills $1 with QEMU from the backports of this Debian, unpacked: the installed one stays.
hwkvm_fetch_qemu() {
    local out=$1 package
    say "hwkvm: QEMU from $hwkvm_suite-backports"
    debian_suite_open "$hwkvm_suite-backports" "$out/apt" ||
        hwkvm_skip "no QEMU $hwkvm_qemu_min: $hwkvm_suite-backports cannot be read"
    (cd "$out/apt" && apt-get "${debian_suite_options[@]}" download \
        qemu-system-x86 qemu-system-common qemu-system-data seabios) ||
        hwkvm_skip "no QEMU $hwkvm_qemu_min in $hwkvm_suite-backports"
    for package in "$out"/apt/*.deb; do dpkg-deb -x "$package" "$out"; done
    rm -r "$out/apt"
}

# Fills $1 with vmlinuz, initrd and root.ext4.
hwkvm_fill() {
    local out=$1 build=$1/build version modules module line
    say "hwkvm: making its root disk with kernel $hwkvm_kernel (once)"
    mkdir "$build"
    (cd "$build" && apt-get download -qq -o APT::Sandbox::User=root "$hwkvm_kernel" &&
        dpkg-deb -x ./"$hwkvm_kernel"_*.deb kernel) || hwkvm_skip "apt cannot download $hwkvm_kernel"
    version=$(basename "$build"/kernel/lib/modules/*)
    mv "$build"/kernel/boot/vmlinuz-* "$out/vmlinuz"
    cp -a "$hwkvm_tree" "$build/tree"
    mkdir -p "$build/tree/usr/lib/modules"
    modules=$build/tree/usr/lib/modules/$version
    mv "$build/kernel/lib/modules/$version" "$modules"
    (cd "$modules/kernel" && rm -rf "${hwkvm_unused[@]}")
    chroot "$build/tree" depmod "$version"
    install "$hwkvm_files/init" "$build/tree/hwkvm-init"
    mkdir -p "$build"/initramfs/{bin,modules}
    cp "$(command -v busybox)" "$build/initramfs/bin/busybox"
    for module in virtio_pci virtio_blk crc32c_generic ext4; do
        chroot "$build/tree" modprobe -S "$version" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++' | while IFS= read -r line; do
        cp "$build/tree$line" "$build/initramfs/modules/"
        basename "$line" >>"$build/initramfs/modules/order"
    done
    install "$hwkvm_files/early-init" "$build/initramfs/init"
    (cd "$build/initramfs" && find . | cpio -o -H newc --quiet) >"$out/initrd"
    truncate -s 3G "$out/root.ext4"
    mkfs.ext4 -q -F -O ^has_journal -d "$build/tree" "$out/root.ext4"
    rm -rf --one-file-system "$build"
}
