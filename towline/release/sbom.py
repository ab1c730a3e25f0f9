"""The software bill of materials (SBOM) of a release, as a CycloneDX 1.6 document."""

import json
import uuid
from typing import Any

from towline.manifest import Manifest
from towline.release.runtime import LockedPackage, parse_lock_file

NAME = "sbom.cdx.json"


def build_sbom(manifest: Manifest, requirements: str) -> str:
    """The SBOM: the model, towline, and each package of the release's lock file with its digests.

    The same release gives the same text. System packages of the base image are not included.
    """
    packages = sorted(set(parse_lock_file(requirements)))
    model = f"{manifest.name}@{manifest.version}"
    towline = {
        "type": "library",
        "bom-ref": "towline",
        "name": "towline",
        "version": manifest.towline,
        "purl": f"pkg:pypi/towline@{manifest.towline}",
    }
    references = [towline["bom-ref"], *map(_reference, packages)]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'{manifest.run_key} {model}')}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model,
                "name": manifest.name,
                "version": str(manifest.version),
                "modelCard": {
                    "modelParameters": {
                        "task": manifest.task,
                        "modelArchitecture": manifest.estimator,
                        "datasets": [{"type": "dataset", "name": f"sha256:{manifest.dataset['digest']}"}],
                    }
                },
                "properties": [
                    {"name": "towline:run_key", "value": manifest.run_key},
                    {"name": "towline:commit", "value": manifest.commit or "none"},
                    *(
                        {"name": f"towline:trained_with:{library}", "value": version}
                        for library, version in sorted(manifest.libraries.items())
                    ),
                ],
            },
        },
        "components": [towline, *map(_component, packages)],
        "dependencies": [{"ref": model, "dependsOn": references}, *({"ref": reference} for reference in references)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _reference(package: LockedPackage) -> str:
    return f"pkg:pypi/{package.name}@{package.version}"


def _component(package: LockedPackage) -> dict[str, Any]:
    """A package with the digests of its archives: one for each platform, of which one is installed."""
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _reference(package),
        "name": package.name,
        "version": package.version,
        "purl": _reference(package),
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.hashes],
    }
    if package.marker:
        component["properties"] = [{"name": "towline:only_where", "value": package.marker}]
    return component
