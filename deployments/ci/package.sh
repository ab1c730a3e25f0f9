#!/usr/bin/env bash
# package.sh MODEL@VERSION REGISTRY: builds a release's image, pushes it, and says on stdout how it is pulled by digest.
set -euo pipefail

built=$(towline package "$1" --image --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["image"])')
pushed="$2/$built"
docker tag "$built" "$pushed" >&2
docker push --quiet "$pushed" >&2
docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$pushed" | grep -m1 "^${pushed%:*}@sha256:"
