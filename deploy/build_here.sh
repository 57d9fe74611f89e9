#!/usr/bin/env bash
# Builds the image of deploy/Containerfile on this machine, without a registry: on a Debian 12 that debootstrap makes.
#
#   deploy/build_here.sh [IMAGE]        as root, with the packages buildah and debootstrap; IMAGE: nfnet-ray:here
#
# From where apt, pip and uv fetch is taken from this machine's own settings (apt's sources, pip.conf, uv.toml,
# environment variables and certificates), shown to the steps that fetch, and kept in no image. MIRROR=… names a
# mirror of Debian where apt here has none. /var/lib/containers and /var/tmp need 40 GB for a while. What the next
# build would use again goes with `buildah rmi nfnet-ray:here nfnet-ray-base:bookworm; buildah rmi --prune`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

image=${1:-nfnet-ray:here}
base=localhost/nfnet-ray-base:bookworm
# Debian 12's.
python=/usr/bin/python3.11

say() { echo "build_here: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "debootstrap and a chroot need root"
for program in buildah debootstrap; do
    command -v "$program" >/dev/null || die "no $program here: apt-get install buildah debootstrap"
done
# Without a container engine's rights: a chroot for each step.
export BUILDAH_ISOLATION=chroot
work=$(mktemp -d)
base_container=""
finish() {
    [ -z "$base_container" ] || buildah rm "$base_container" >/dev/null
    rm -rf "$work"
}
trap finish EXIT

# --- from where this machine fetches ----------------------------------------------------------------

mirror_of() {  # the first of apt's own sources of a suite, if there is one
    { apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' || true; } \
        2>/dev/null | awk -v suite="$1" '$2 == suite && $3 == "main" && !found++ { print $1 }'
}

mirror=${MIRROR:-$(mirror_of bookworm)}
[ -n "$mirror" ] || die "apt has no source of Debian 12 here: name a mirror with MIRROR=…"
{
    echo "deb $mirror bookworm main"
    for suite in bookworm-updates bookworm-security; do
        uri=$(mirror_of "$suite")
        [ -z "$uri" ] || echo "deb $uri $suite main"
    done
} > "$work/apt"

certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ -e "$certificates" ] && cp -L "$certificates" "$work/certificates" || touch "$work/certificates"

{
    # Also where uv.toml or an environment says nothing: a company's own certificate authority.
    if [ -s "$work/certificates" ]; then
        for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE CURL_CA_BUNDLE; do
            echo "export $name=/run/secrets/certificates"
        done
    fi
    # pip.conf and PIP_…, in the order in which pip lets one win; what is a folder of this machine is not in a build.
    python3 -m pip --disable-pip-version-check config list 2>/dev/null |
        sed -nE "s/^(global|install|:env:)\.(index-url|extra-index-url|trusted-host|proxy)='(.*)'$/\2 \3/p" |
        while read -r name value; do
            value=$(sed 's/\\n/ /g' <<< "$value" | tr ' ' '\n' | grep -vE '^(file:|/|$)' | paste -s -d ' ') || true
            [ -z "$value" ] || echo "export PIP_$(tr a-z- A-Z_ <<< "$name")=${value@Q}"
        done
    for name in $(compgen -e | grep -E '^(UV_.*(INDEX|TLS|CERT|HOST|TIMEOUT|MIRROR).*|(http|https|no|all)_proxy|(HTTP|HTTPS|NO|ALL)_PROXY)$' ); do
        echo "export $name=${!name@Q}"
    done
} > "$work/environment"

# --- the base ---------------------------------------------------------------------------------------

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    say "a base with Debian's Python (kept as $base)"
    base_container=$(buildah from scratch)
    root=$(buildah mount "$base_container")
    # The headers are for torch.compile, as in the published base.
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-venv \
        bookworm "$root" "$mirror" > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; die "debootstrap failed"; }
    # Nothing of this machine's mirror stays, and no packages.
    : > "$root/etc/apt/sources.list"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/{apt,bootstrap.log,dpkg.log}
    buildah umount "$base_container" >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd /bin/bash "$base_container"
    buildah commit --quiet "$base_container" "$base" >/dev/null
fi

# --- the image --------------------------------------------------------------------------------------

for file in "${UV_CONFIG_FILE:-}" "${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml" /etc/uv/uv.toml; do
    [ ! -f "$file" ] || { cp "$file" "$work/uv"; break; }
done

secrets=()
for name in apt certificates environment uv; do
    [ ! -e "$work/$name" ] || secrets+=(--secret "id=$name,src=$work/$name")
done
buildah build --layers --pull=never --file deploy/Containerfile --tag "$image" "${secrets[@]}" \
    --build-arg "BASE=$base" --build-arg "PYTHON=$python" .
buildah images "$image" >&2
