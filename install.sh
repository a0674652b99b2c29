#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Install the Debian packages listed in packages.txt that are missing.
# Plain sh, because on a bare machine there is no python3 yet.
set -eu

list=${1:-$(dirname "$0")/packages.txt}
[ -r "$list" ] || { echo "install: cannot read the package list $list" >&2; exit 1; }
command -v apt-get >/dev/null ||
    { echo "install: no apt-get here; install what $list names by hand, then set SKIP_INSTALL=1" >&2; exit 1; }

missing=
for p in $(sed 's/#.*//' "$list"); do
    dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed ||
        missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "install: missing packages; as root run: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "install:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words is meant
if ! { apt-get -q update && apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "install: apt-get failed (see above); repair apt, then run this again" >&2
    exit 1
fi
