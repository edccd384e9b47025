#!/usr/bin/env bash
# docker/build.sh [tag]     BASE_IMAGE=... for another base, CONTAINER=podman for another builder
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${CONTAINER:-docker}" build \
  ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} \
  --label "org.opencontainers.image.revision=$(git describe --always --dirty --abbrev=40)" \
  --file docker/Dockerfile --tag "${1:-sv-papers}" .
