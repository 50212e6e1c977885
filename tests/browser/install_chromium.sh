#!/bin/sh
# Prints the path of a Chromium for the tests of pages; installs Debian's where none is found and
# this is root with apt-get. Fails, and says what to do, where it can do neither.
set -eu

find_chromium() {
    if [ -n "${VGGT_DEPLOY_CHROMIUM:-}" ]; then
        command -v "$VGGT_DEPLOY_CHROMIUM" && return 0
        echo "VGGT_DEPLOY_CHROMIUM=$VGGT_DEPLOY_CHROMIUM is no executable file" >&2
        exit 1
    fi
    for name in chromium chromium-browser google-chrome; do
        # Ubuntu's chromium-browser may be a stub that only points to a snap.
        command -v "$name" >/dev/null && "$name" --version >/dev/null 2>&1 || continue
        command -v "$name"
        return 0
    done
    return 1
}

find_chromium && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo 'no Chromium found: install it as root (apt-get install chromium),' >&2
    echo 'or set VGGT_DEPLOY_CHROMIUM to the executable of one' >&2
    exit 1
fi

# stdout carries the path alone.
apt-get update >&2
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium >&2
find_chromium || {
    echo 'apt-get installed chromium, but none on PATH runs' >&2
    echo 'set VGGT_DEPLOY_CHROMIUM to the executable of a Chromium or Chrome' >&2
    exit 1
}
