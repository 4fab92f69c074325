#!/usr/bin/env bash
# Fetch the photographs of semcom_fast/data/photo_manifest.txt out of Debian packages. Needs no root: nothing is installed.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: tools/get_photos.sh [--plasma] [--lomiri-20.04] [--tuxpaint]

Copies 25 photographs (62 MB of downloads: lomiri-wallpapers-16.04, mate-backgrounds) into $SEMCOM_DATA/photos;
SEMCOM_DATA defaults to ~/.cache/semcom_fast. What is already there is not fetched again.

  --plasma        11 more photographs (94 MB, plasma-workspace-wallpapers)
  --lomiri-20.04  1 more photograph (11 MB, lomiri-wallpapers-20.04)
  --tuxpaint      the object stamps of STAMPS-10 (161 MB, tuxpaint-stamps-default) into $SEMCOM_DATA/stamps

Works on Debian and Ubuntu with package lists (apt-get update, run once by an administrator).
USAGE
}

die() {
    echo "get_photos.sh: $*" >&2
    exit 1
}

manifest="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/semcom_fast/data/photo_manifest.txt"
data="${SEMCOM_DATA:-${HOME:?neither SEMCOM_DATA nor HOME is set}/.cache/semcom_fast}"
packages=(lomiri-wallpapers-16.04 mate-backgrounds)
tuxpaint=no
for option in "$@"; do
    case "$option" in
        --plasma) packages+=(plasma-workspace-wallpapers) ;;
        --lomiri-20.04) packages+=(lomiri-wallpapers-20.04) ;;
        --tuxpaint) tuxpaint=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "unknown option $option" ;;
    esac
done
[[ -r "$manifest" ]] || die "no manifest at $manifest: run the script from a source tree"

temp="$(mktemp -d)"
trap 'rm -rf "$temp"' EXIT

# unpack PACKAGE: into $temp/PACKAGE
unpack() {
    local package="$1" download="$temp/$1.download" options=()
    for tool in apt-get apt-cache dpkg-deb; do
        command -v "$tool" >/dev/null || die "$tool is missing: the photographs come from Debian packages (Debian, Ubuntu)"
    done
    [[ -n "$(apt-cache show "$package" 2>/dev/null || true)" ]] ||
        die "apt knows no package $package: its lists are missing or too old; run 'apt-get update' once (as root), then again"
    [[ "$(id -u)" != 0 ]] || options=(-o APT::Sandbox::User=root) # the temporary folder is closed to user _apt
    mkdir -p "$download"
    echo "fetching $package"
    (cd "$download" && apt-get -qq "${options[@]}" download "$package") || die "downloading $package failed (see above)"
    dpkg-deb -x "$download"/*.deb "$temp/$package"
    rm -r "$download"
}

# install_file SOURCE TARGET: whole or not at all
install_file() {
    cp "$1" "$2.part" && chmod 644 "$2.part" && mv -f "$2.part" "$2"
}

# copy_photos PACKAGE: the photographs the manifest lists for it
copy_photos() {
    local package="$1" split from name path licence author sum target actual missing=no
    while IFS='|' read -r split from name path licence author sum; do
        [[ "$from" == "$package" && ! -s "$data/photos/$name.jpg" ]] && missing=yes
    done <"$manifest"
    if [[ "$missing" == no ]]; then
        echo "$package: already there"
        return
    fi
    unpack "$package"
    while IFS='|' read -r split from name path licence author sum; do
        [[ "$from" == "$package" ]] || continue
        target="$data/photos/$name.jpg"
        [[ -f "$temp/$package/$path" ]] || die "$package of this distribution has no $path; the manifest is for Debian bookworm"
        install_file "$temp/$package/$path" "$target"
        actual="$(sha256sum "$target" | cut -d' ' -f1)"
        [[ "$actual" == "$sum" ]] ||
            echo "warning: $name differs from the file the published figures were made with (SHA-256 $actual)" >&2
    done <"$manifest"
}

copy_stamps() {
    if [[ -s "$data/stamps/COPYRIGHT" ]]; then
        echo "tuxpaint-stamps-default: already there"
        return
    fi
    unpack tuxpaint-stamps-default
    local from="$temp/tuxpaint-stamps-default/usr/share" file target
    [[ -d "$from/tuxpaint/stamps" ]] || die "tuxpaint-stamps-default of this distribution has no usr/share/tuxpaint/stamps"
    while IFS= read -r -d '' file; do
        target="$data/stamps/${file#"$from/tuxpaint/stamps/"}"
        mkdir -p "$(dirname "$target")"
        install_file "$file" "$target"
    done < <(find "$from/tuxpaint/stamps" -type f -name '*.png' -print0)
    install_file "$from/doc/tuxpaint-stamps-default/copyright" "$data/stamps/COPYRIGHT" # last: says the copy is whole
}

mkdir -p "$data/photos"
for package in "${packages[@]}"; do
    copy_photos "$package"
done
[[ "$tuxpaint" == no ]] || copy_stamps
echo "$(find "$data/photos" -name '*.jpg' | wc -l) photographs in $data/photos"
[[ "$tuxpaint" == no ]] || echo "$(find "$data/stamps" -name '*.png' | wc -l) stamps in $data/stamps"
