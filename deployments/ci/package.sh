#!/usr/bin/env bash
# package.sh MODEL@VERSION REPOSITORY: builds and tries a release's image, pushes it, and prints how it is pulled by digest.
set -euo pipefail

built=$(towline package "$1" --image --repository "$2" --json)
image=$(python3 -c 'import json, sys; print(json.loads(sys.argv[1])["image"])' "$built")
docker push --quiet "$image" >&2
docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$image" | grep -m1 "^$2@sha256:"
