#!/usr/bin/env bash
# Make a base image without a registry: a small Debian with Python, imported into the local Docker engine.
#
#   scripts/base-image.sh [TAG]                  kvstore-base:bookworm unless told otherwise
#   MIRROR=URL scripts/base-image.sh             packages from there; else where this machine gets its own
#   ROOT=DIR scripts/base-image.sh               import this tree (of debootstrap, or unpacked), change nothing in it
#
# Needs root, debootstrap and docker. An air-gapped site needs a mirror of Debian and nothing else.
set -euo pipefail

tag=${1:-kvstore-base:bookworm}
suite=${SUITE:-bookworm}
root=${ROOT:-}

if [ -z "$root" ]; then
    command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    root=$work/root
    mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" | sed -n 1p)}
    [ -n "$mirror" ] || { echo "no mirror of $suite is known here: MIRROR=URL $0" >&2; exit 1; }
    echo "debootstrap $suite from $mirror"
    debootstrap --variant=minbase --include=python3.11 "$suite" "$root" "$mirror" >"$work/log" 2>&1 ||
        { tail -20 "$work/log" >&2; exit 1; }
fi
[ -e "$root/usr/bin/python3" ] || link=1

# What a container never reads stays behind. Byte code stays: a read-only node could never write it and would
# compile the library at every start. dpkg's lists stay, so that scanners see the versions.
tar -C "$root" --numeric-owner --one-file-system \
    --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' --exclude='./run/*' --exclude='./tmp/*' \
    --exclude='./var/cache/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
    --exclude='./debootstrap' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
    --exclude='./usr/share/info/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/lintian/*' \
    -c . |
    docker import \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
        --change 'CMD ["python3"]' \
        - "$tag" >/dev/null
if [ -n "${link:-}" ]; then
    # minbase brings python3.11 without the name python3
    docker build --quiet --network none --tag "$tag" - >/dev/null <<DOCKERFILE
FROM $tag
RUN ln -s python3.11 /usr/bin/python3
DOCKERFILE
fi
docker image inspect --format "$tag: {{.Size}} bytes" "$tag"
