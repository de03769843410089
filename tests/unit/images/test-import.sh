#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# import-image with sound, damaged and hostile archives. TAP on stdout. As any user who has subordinate ids, or as root.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
images=$(CDPATH='' cd -- "$here/../../../images" && pwd -P)
PATH=$PATH:/usr/sbin:/sbin

for tool in python3 mke2fs debugfs gzip xz bzip2 zstd busybox; do
    command -v "$tool" >/dev/null || { echo "Bail out! $tool is missing; next: apt-get install e2fsprogs gzip xz-utils bzip2 zstd busybox-static"; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' HUP INT TERM
store=$work/store
outside=$work/outside
mkdir "$store" "$outside"
echo secret >"$outside/file"
count=0 failed=0

ok() { count=$((count + 1)); echo "ok $count - $1"; }
not_ok() {
    count=$((count + 1)) failed=$((failed + 1))
    echo "not ok $count - $1"
    sed 's/^/# /' "$work/out" "$work/err" 2>/dev/null || :
}
check() {       # check NAME COMMAND...
    title=$1
    shift
    if "$@"; then ok "$title"; else not_ok "$title"; fi
}
archive() { python3 "$here/archives.py" "$1" "$2" "$(command -v busybox)"; }
import() { "$images/import-image" "$store" "$1" "$2" >"$work/out" 2>"$work/err"; }
clean() { [ -z "$(find "$store" -name '.tmp-*')" ]; }
disk() { debugfs -R "$2" "$store/$1/disk.raw" 2>/dev/null; }
content() { [ "$(disk "$1" "cat $2")" = "$3" ]; }
json() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$store/$1/image.json" "$2"; }

# refuse TITLE NAME ARCHIVE PATTERN: fails, says why in the last line, leaves nothing behind
refuse() {
    if import "$2" "$3"; then not_ok "$1: was imported"; return; fi
    if ! tail -n 1 "$work/err" | grep -Eq -- "$4"; then not_ok "$1: message"; return; fi
    if [ -e "$store/$2/disk.raw" ] && [ "$2" != keep ]; then not_ok "$1: left an image"; return; fi
    if ! clean; then not_ok "$1: left a temporary folder"; return; fi
    ok "$1"
}

archive sound "$work/sound.tar"
archive other "$work/other.tar"
gzip -1 -c "$work/sound.tar" >"$work/sound.gz"
xz -0 -c "$work/sound.tar" >"$work/misnamed.gz"
zstd -q -1 -c "$work/sound.tar" >"$work/sound.zst"
bzip2 -1 -c "$work/sound.tar" >"$work/sound.bz2"

check 'gzip' import gz "$work/sound.gz"
check 'xz, found by content and not by name' import xz "$work/misnamed.gz"
check 'zstd' import zst "$work/sound.zst"
check 'bzip2' import bz2 "$work/sound.bz2"
check 'no compression' import keep "$work/sound.tar"
same=yes
for name in gz xz zst bz2; do
    content "$name" /etc/version one || same=no
    e2fsck -fn "$store/$name/disk.raw" >"$work/out" 2>&1 || same=no
    rm -rf "${store:?}/$name"
done
check 'each gives the same sound file system' [ "$same" = yes ]

check 'image.json' [ "$(json keep name) $(json keep format) $(json keep virtual_size_bytes) $(json keep min_disk_gb) $(json keep source)" = 'keep raw 2147483648 2 import sound.tar' ]
check 'disk of the size that it says' [ "$(stat -c %s "$store/keep/disk.raw")" = 2147483648 ]
check 'the disk cannot be written by accident, and the folder can be read' [ "$(stat -c %a "$store/keep/disk.raw" "$store/keep" | paste -sd' ')" = '444 755' ]
check 'owner, mode and set-user-ID bit kept' [ "$(disk keep 'stat /home/user/set-uid' | tr -s ' \n' ' ' | grep -Eo 'Mode: [0-9]+|User: [0-9]+|Group: [0-9]+|Links: [0-9]+' | paste -sd' ')" = 'Mode: 04755 User: 1000 Group: 1001 Links: 2' ]
check 'times kept' sh -c "debugfs -R 'stat /home/user/set-uid' '$store/keep/disk.raw' 2>/dev/null | grep -q '^ mtime: 0x6553f100'"
check 'link kept' sh -c "debugfs -R 'stat /bin/sh' '$store/keep/disk.raw' 2>/dev/null | grep -q 'dest: \"/bin/busybox\"'"
check 'extended attribute kept' sh -c "debugfs -R 'ea_list /home/user/capable' '$store/keep/disk.raw' 2>/dev/null | grep -q kept"
check 'device nodes left out' [ -z "$(disk keep 'ls -p /dev' | grep null)" ]
check 'folders that every guest needs' [ "$(disk keep 'ls -p /' | awk -F/ '$6 ~ /^(proc|sys|dev|run|tmp|workspace)$/ { print $6 $3 }' | sort | paste -sd' ')" = 'dev040755 proc040555 run040755 sys040555 tmp041777 workspace040755' ]
check 'the root folder can be entered by everybody' [ "$(disk keep 'ls -p /' | awk -F/ '$6 == "." { print $3 }')" = 040755 ]
check 'root has no password' content keep /etc/shadow "$(printf 'root:*:19000:0:::::\nbin:!::0:::::')"
check 'shadow keeps its mode and group' [ "$(disk keep 'ls -p /etc' | awk -F/ '$6 == "shadow" { print $3, $5 }')" = '100640 42' ]
check 'resolv.conf and machine-id are empty files' [ "$(disk keep 'ls -p /etc' | awk -F/ '$6 ~ /^(resolv.conf|machine-id)$/ { print $3, $7 }' | paste -sd' ')" = '100644 0 100644 0' ]

id=$(json keep id)
check 'again: succeeds' import keep "$work/sound.tar"
check 'again: nothing is done' [ "$(json keep id) $(cat "$work/out")" = "$id image keep is up to date" ]

truncate -s 100000 "$work/sound.zst"
refuse 'a failed import leaves the old image' keep "$work/sound.zst" "'sound.zst': .*(damaged|cut off)"
check 'it is whole' [ "$(json keep id) $(disk keep 'cat /etc/version')" = "$id one" ]
check 'another archive takes its place' import keep "$work/other.tar"
check 'with its content' content keep /etc/version two
check 'and a new identity' [ "$(json keep id)" != "$id" ]

archive dotdot "$work/t.tar"
refuse 'name with ..' bad "$work/t.tar" "holds the name '../escaped', which leads out of it"
archive dotdot-inside "$work/t.tar"
refuse 'name with .. inside' bad "$work/t.tar" "leads out of it"
archive absolute "$work/t.tar"
refuse 'absolute name' bad "$work/t.tar" "absolute name '/tmp/agentiso-escaped'"
check 'nothing came out' [ ! -e /tmp/agentiso-escaped ]
archive "link:$outside" "$work/t.tar"
import bad "$work/t.tar" || :
check 'links that lead out: nothing came out' [ "$(ls "$outside") $(cat "$outside/file")" = 'file secret' ]
check 'links that lead out: nothing left behind' clean
rm -rf "$store/bad"
archive "hard:$outside/file" "$work/t.tar"
refuse 'hard link to a file of the host' bad "$work/t.tar" "etc/stolen': No such file"
check 'it has one name still' [ "$(stat -c %h "$outside/file")" = 1 ]

gzip -1 -c "$work/other.tar" >"$work/cut.gz"
truncate -s 300000 "$work/cut.gz"
refuse 'cut off, gzip' bad "$work/cut.gz" "'cut.gz': gzip calls it damaged or cut off|'cut.gz': .*damaged"
cp "$work/other.tar" "$work/cut.tar"
truncate -s 300000 "$work/cut.tar"
refuse 'cut off in a file' bad "$work/cut.tar" "'cut.tar': it is no tar archive, or a damaged one"
python3 - "$work/other.tar" "$work/cut.tar" <<'END'
import sys, tarfile
member = tarfile.open(sys.argv[1]).getmember("./etc/version")
open(sys.argv[2], "wb").write(open(sys.argv[1], "rb").read()[:member.offset_data + 512])
END
refuse 'cut off between two files' bad "$work/cut.tar" "cut off or damaged after [0-9]+ entries: no end mark"
python3 - "$work/other.tar" "$work/cut.tar" <<'END'
import sys, tarfile
member = tarfile.open(sys.argv[1]).getmember("./etc/version")
data = bytearray(open(sys.argv[1], "rb").read())
data[member.offset + 10] ^= 1
open(sys.argv[2], "wb").write(data)
END
refuse 'a damaged header' bad "$work/cut.tar" "damaged"
head -c 100000 /dev/urandom >"$work/noise"
refuse 'noise' bad "$work/noise" "'noise': it is no tar archive"
: >"$work/empty"
refuse 'an empty file' bad "$work/empty" "is empty"
archive long-header "$work/t.tar"
refuse 'a header that claims 8 GiB' bad "$work/t.tar" "damaged"
archive no-shell "$work/t.tar"
refuse 'no /bin/sh' bad "$work/t.tar" "this is no root file system: it has no /bin/sh"
archive dangling-shell "$work/t.tar"
refuse '/bin/sh leads nowhere' bad "$work/t.tar" "this is no root file system: it has no /bin/sh"
archive shell-is-folder "$work/t.tar"
refuse '/bin/sh is a folder' bad "$work/t.tar" "its /bin/sh is no program"
archive other-processor "$work/t.tar"
refuse 'another processor' bad "$work/t.tar" "another processor"
archive loop "$work/t.tar"
refuse 'a link to itself' bad "$work/t.tar" "bin/sh': .*"
refuse 'no such archive' bad "$work/none.tar" "there is no archive"

for name in boot cache .hidden .. a/b 'a b' '' "$(printf '%065d' 0)"; do
    refuse "the name '$name'" "$name" "$work/sound.tar" "image"
done

# A kill at any moment leaves the old image; the next import removes what is left.
archive big "$work/big.tar"
id=$(json keep id)
"$images/import-image" "$store" keep "$work/big.tar" >"$work/out" 2>"$work/err" &
pid=$!
until grep -q unpacking "$work/out"; do sleep 0.05; done
sleep 0.2
kill -TERM "$pid"
status=0
wait "$pid" || status=$?
check 'SIGTERM ends it' [ "$status" = 143 ]
check 'SIGTERM: nothing left behind' clean
"$images/import-image" "$store" keep "$work/big.tar" >"$work/out" 2>"$work/err" &
pid=$!
until grep -q unpacking "$work/out"; do sleep 0.05; done
sleep 0.2
kill -KILL "$pid"
wait "$pid" 2>/dev/null || :
check 'the old image is there' [ "$(json keep id) $(disk keep 'cat /etc/version')" = "$id two" ]
check 'the next import succeeds' import keep "$work/sound.tar"
check 'and cleans up' clean

echo "1..$count"
[ "$failed" = 0 ]
