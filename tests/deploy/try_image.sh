#!/usr/bin/env bash
# Builds the Dockerfile's stage `cpu` without any image to start from, and runs it with a read-only root.
# The base is made FROM scratch: Debian by mmdebstrap, and this machine's own Python in the place of python:3.11-slim.
#
#   sudo tests/deploy/try_image.sh /usr/bin/python3.11        # needs Debian's buildah, netavark and mmdebstrap; minutes
#
# pip's settings of this machine (/etc/pip.conf, and the certificates that it names) are lent to the build.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(readlink -f "$1")
place=$(mktemp -d)
image() { buildah --storage-driver vfs --root "$place/images" --runroot "$place/run" "$@"; }
server=
# unshare keeps signals to itself: its child is the server.
trap '[ -z "$server" ] || kill $(cat "/proc/$server/task/$server/children"); wait; rm -rf "$place"' EXIT

base=$(image from scratch)
root=$(image mount "$base")
mmdebstrap --quiet --variant=minbase --include=ca-certificates "$(. /etc/os-release; echo "$VERSION_CODENAME")" "$place/debian.tar"
image add --quiet "$base" "$place/debian.tar" / >/dev/null
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
tar -C "$prefix" --exclude='*/site-packages' --exclude='*/test' --exclude=__pycache__ --exclude='*.a' -c bin/python3.11 \
    lib/python3.11 $(cd "$prefix" && ls -d lib/libpython3.11.so* 2>/dev/null) | tar -x -C "$root/usr/local"
# The system's libraries that Python's modules need.
ldd "$prefix"/lib/python3.11/lib-dynload/*.so | grep -o '/[^ ]*-linux-gnu/[^ ]*\.so[^ ]*' | grep -v lib-dynload | sort -u |
    while read -r library; do [ -e "$root$library" ] || cp -L "$library" "$root$library"; done
chroot "$root" sh -c 'ldconfig && ln -s python3.11 /usr/local/bin/python && python -m ensurepip && ln -s pip3 /usr/local/bin/pip' >/dev/null 2>&1
image commit --quiet "$base" docker.io/library/python:3.11-slim >/dev/null

lent=()
for file in /etc/pip.conf $(sed -n 's/^cert *= *//p' /etc/pip.conf 2>/dev/null); do
    [ ! -e "$file" ] || lent+=(--volume "$file:$file:ro")
done
image build --isolation chroot --network host --pull=never --format docker "${lent[@]}" \
    --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --target cpu --tag ddm-rt --file deploy/Dockerfile .
image inspect --type image ddm-rt | "$python" -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["Docker"]["config"]))'

made=$(image mount "$(image from --pull=never ddm-rt)")
# As `docker run --read-only --tmpfs /tmp` does: nothing but /tmp and the ledger's folder can be written.
unshare --mount --pid --fork --kill-child sh -c '
    mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && mount -t proc proc "$0/proc" &&
    mount -t tmpfs tmpfs "$0/tmp" && mount -t tmpfs -o uid=10001,mode=700 tmpfs "$0/var/lib/ddm-rt" &&
    exec chroot --userspec=10001 "$0" /usr/bin/env -i HOME=/tmp PATH=/usr/local/bin:/usr/bin:/bin \
        sh -c "(touch /here) 2>/dev/null && exit 9; exec ddm-rt serve digits --host 0.0.0.0 --ledger /var/lib/ddm-rt/counts.ledger"
' "$made" &
server=$!
for _ in $(seq 120); do
    chroot "$made" python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)" \
        2>/dev/null && break
    kill -0 "$server" && sleep 1
done
curl --fail --silent http://127.0.0.1:8000/readyz
curl --fail --silent http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d '{"n": 4}' | wc -c
