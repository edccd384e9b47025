#!/usr/bin/env bash
# docker/build.sh [tag]     builds the image sv-papers, or tag
#
#   BASE_IMAGE=...   another base than NGC's PyTorch
#   CONTAINER=...    another builder than docker: podman, buildah
#   PIP_CONF=file    pip's settings for the build (a proxy, a private index); not in the image
#   CA_BUNDLE=file   certificates for it: write `cert = /run/secrets/ca_bundle` into that file
set -euo pipefail
case "${1:-}" in -*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
[ -z "${PIP_CONF:-}" ] || PIP_CONF=$(realpath -e "$PIP_CONF")
[ -z "${CA_BUNDLE:-}" ] || CA_BUNDLE=$(realpath -e "$CA_BUNDLE")
cd "$(dirname "$0")/.."
revision=$(git describe --always --dirty --abbrev=40 2> /dev/null || echo unknown)
exec "${CONTAINER:-docker}" build \
  ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} \
  ${PIP_CONF:+--secret "id=pip_conf,src=$PIP_CONF"} \
  ${CA_BUNDLE:+--secret "id=ca_bundle,src=$CA_BUNDLE"} \
  --build-arg "REVISION=$revision" \
  --label "org.opencontainers.image.revision=$revision" \
  --file docker/Dockerfile --tag "${1:-sv-papers}" .
