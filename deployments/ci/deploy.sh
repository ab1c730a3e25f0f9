#!/usr/bin/env bash
# deploy.sh OVERLAY IMAGE@DIGEST: one release into a cluster. If it does not come up, the one before comes back.
set -euo pipefail

overlay=$1 image=$2
[[ $image =~ @sha256:[0-9a-f]{64}$ ]] || { echo "not an image by digest: $image" >&2; exit 2; }
namespace=$(sed -n 's/^namespace: *//p' "$overlay/kustomization.yaml")

(cd "$overlay" && kustomize edit set image "towline-release=$image")
kubectl apply -k "$overlay"
if ! kubectl -n "$namespace" rollout status deployment/predictions --timeout=300s; then
  kubectl -n "$namespace" rollout undo deployment/predictions
  kubectl -n "$namespace" rollout status deployment/predictions --timeout=300s
  exit 1
fi
