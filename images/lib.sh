# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# What build-boot, build-image and import-image share. Sourced, with $here set to the folder of the recipes.
#
# Everything is made in IMAGE_DIR/.tmp-XXXXXX (mode 0700: a foreign set-user-ID file is out of reach while it is unpacked) and
# renamed when it is whole, so that a kill at any moment leaves the old or the new image. One build at a time holds
# IMAGE_DIR/.lock; the next one removes what a dead one left.
#
# Long commands run in the background and are waited for, as a shell handles signals between commands only.

set -eu
umask 022
LC_ALL=C
export LC_ALL

here=${here:?}
child=
tmp=

note() { printf '%s\n' "$*"; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need COMMAND PACKAGE ...: pairs
need() {
    missing=
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
        shift 2
    done
    [ -z "$missing" ] || fail "commands of these packages are missing:$missing; next: apt-get install$missing"
}

# Run a command that a signal to this script ends. Its stdin is /dev/null.
run() {
    "$@" &
    child=$!
    result=0
    wait "$child" || result=$?
    child=
    return "$result"
}

# Become root of a user namespace in which the caller is uid 0 and its subordinate ids are the others: files of any owner can
# then be made without being root. As root there is nothing to become: what handles foreign files locks itself in by chroot.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        run "$@"
    else
        run unshare --user --map-root-user --map-auto -- "$@"
    fi
}

check_as_root() {
    [ "$(id -u)" = 0 ] && return
    need unshare util-linux newuidmap uidmap
    unshare --user --map-root-user --map-auto -- true 2>/dev/null ||
        fail "no user namespace with subordinate ids for $(id -un); next (as root): usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un), and allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
}

remove_tree() {
    rm -rf -- "$1" 2>/dev/null || as_root rm -rf -- "$1"      # another owner's files need the namespace
}

cleanup() {
    status=$?
    trap '' HUP INT TERM
    trap - EXIT
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null || :
        wait "$child" 2>/dev/null || :
    fi
    [ -z "$tmp" ] || remove_tree "$tmp"
    exit "$status"
}

# open_store IMAGE_DIR: make it, lock it, remove what dead builds left, make $tmp.
open_store() {
    need python3 python3 flock util-linux sha256sum coreutils
    mkdir -p -- "$1" || fail "cannot make the image folder '$1'; next: name a folder that you may write to"
    store=$(CDPATH='' cd -- "$1" && pwd -P) || fail "cannot enter the image folder '$1'"
    trap cleanup EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    { exec 9>"$store/.lock"; } 2>/dev/null || fail "cannot write to the image folder '$store'; next: run this as its owner ($(stat -c %U -- "$store"))"
    if ! flock -n 9; then
        note "waiting for another build in $store"
        run flock 9 || fail "cannot lock $store/.lock"
    fi
    for left in "$store"/.tmp-*; do
        [ -e "$left" ] || continue
        note "removing ${left##*/}, left by a build that died"
        remove_tree "$left"
    done
    tmp=$(mktemp -d "$store/.tmp-XXXXXX") || fail "cannot make a temporary folder in '$store'"
}

# need_space MIB
need_space() {
    free=$(df -Pk -- "$store" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$1" ] || fail "$store has $free MiB free, this takes about $1 MiB while it runs; next: free some space or name another image folder"
}

# field FILE NAME: a value out of one of our JSON files; empty when there is none.
field() { python3 -I "$here/store.py" get "$1" "$2"; }

# recipe_key NAME... : sha256 of the named recipe files and of what is on stdin
recipe_key() {
    { for recipe in "$@"; do sha256sum <"$here/$recipe"; done; cat; } | sha256sum | cut -d' ' -f1
}

# The file system of every image: what a guest kernel 6.1 or newer reads, resize_inode with room for 100 GiB (beyond that the
# kernel goes on with meta_bg), a small journal as every fork copies it, no reserved blocks, fixed ids. mke2fs finds holes
# where the inode tables go, so they count as zeroed and no guest zeroes them again.
ext4_features=none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum
ext4_uuid=6167656e-7469-736f-8000-000000000001

# make_image NAME ARCHIVE KEY SOURCE [keep]: an archive of a root file system becomes the image NAME. With "keep" ARCHIVE stays.
make_image() {
    name=$1 archive=$2 key=$3 origin=$4 keep=${5:-}
    need mke2fs e2fsprogs
    PATH=$PATH:/usr/sbin:/sbin
    mkdir "$tmp/root" "$tmp/new"
    note "unpacking"
    as_root python3 -I "$here/rootfs.py" "$archive" "$tmp/root" >"$tmp/counts" || exit 1       # it said why
    read -r entries bytes skipped <"$tmp/counts"
    [ "$skipped" = 0 ] || note "left out $skipped device nodes"
    [ -n "$keep" ] || rm -f -- "$archive"
    need_space $((bytes / 1048576 + 64))

    # 2 GiB, or the content and a quarter more, in steps of 256 MiB; enough inodes for twice the files.
    step=268435456
    size=$(((bytes + bytes / 4 + step + step - 1) / step * step))
    [ "$size" -ge 2147483648 ] || size=2147483648
    ratio=16384
    while [ $((size / ratio)) -lt $((entries * 2)) ] && [ "$ratio" -gt 4096 ]; do ratio=$((ratio / 2)); done
    while [ $((size / ratio)) -lt $((entries * 2)) ]; do size=$((size + step)); done

    note "making the file system: $entries files, $((bytes / 1048576)) MiB, on $((size / 1048576)) MiB"
    truncate -s "$size" "$tmp/new/disk.raw"
    as_root mke2fs -q -F -t ext4 -b 4096 -I 256 -i "$ratio" -m 0 -J size=16 -O "$ext4_features" -U "$ext4_uuid" -L agentiso \
        -E "resize=26214400,hash_seed=$ext4_uuid,root_owner=0:0" -d "$tmp/root" "$tmp/new/disk.raw" ||
        fail "mke2fs could not make the file system of $((size / 1048576)) MiB for '$name' (see above)"
    run e2fsck -fn "$tmp/new/disk.raw" >"$tmp/fsck" 2>&1 || {
        cat "$tmp/fsck" >&2
        fail "the new file system of '$name' has errors (see above); this is a bug of agentiso or of e2fsprogs"
    }
    chmod 0444 "$tmp/new/disk.raw"
    run python3 -I "$here/store.py" publish "$tmp/new" "$store/$name" image.json \
        "name=$name" format=raw "key=$key" "source=$origin" "virtual_size_bytes:=$size" \
        "min_disk_gb:=$(((size + 1073741823) / 1073741824))" || fail "cannot put the image '$name' in place"
    note "image $name is ready: $store/$name/disk.raw"
}
