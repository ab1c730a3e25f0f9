"""The keys of the custom resources in the examples, as closed JSON schemas: a misspelt key is an error.

Each was compared with the resource's definition: KServe's ``v1beta1`` and ``v1alpha1``, Seldon Core 2's ``v1alpha1``
and Argo Rollouts' ``v1alpha1``. Parts that a pod has, too, are checked against Kubernetes' own schemas.
"""

from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.kubernetes import Document, validate_document

TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
ANY: Document = {}
POD = {"containers", "volumes"}


def closed(required: dict[str, Any], **optional: Any) -> Document:
    """An object with only these keys."""
    keys = required | optional
    return {"type": "object", "properties": keys, "required": list(required), "additionalProperties": False}


def items(schema: Document) -> Document:
    return {"type": "array", "items": schema, "minItems": 1}


_FORMAT = closed({"name": TEXT}, version=TEXT)
_MODEL = closed({"modelFormat": _FORMAT}, protocolVersion=TEXT, runtime=TEXT, storageUri=TEXT)
_PREDICTOR = closed({"model": _MODEL}, minReplicas=COUNT, maxReplicas=COUNT, canaryTrafficPercent=COUNT)
_ARGUMENT = closed({"name": TEXT}, value=TEXT)
_ANALYSIS = closed({"templates": items(closed({"templateName": TEXT}))}, startingStep=COUNT, args=items(_ARGUMENT))
_STEP = {"oneOf": [closed({"setWeight": COUNT}), closed({"pause": closed({}, duration=TEXT)})]}
_CANARY = closed({"steps": items(_STEP)}, maxSurge=COUNT, maxUnavailable=COUNT, analysis=_ANALYSIS)
_REFERENCE = closed({"apiVersion": TEXT, "kind": TEXT, "name": TEXT})
_METRIC = closed(
    {"name": TEXT, "provider": closed({"prometheus": closed({"address": TEXT, "query": TEXT})})},
    interval=TEXT, successCondition=TEXT, failureCondition=TEXT, failureLimit=COUNT, inconclusiveLimit=COUNT,
)  # fmt: skip

#: apiVersion and kind → the schema of ``spec``
SPECS = {
    ("serving.kserve.io/v1beta1", "InferenceService"): closed({"predictor": _PREDICTOR}),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): closed(
        {"containers": ANY},
        volumes=ANY,
        protocolVersions=items({"enum": ["v1", "v2", "grpc-v2"]}),
        supportedModelFormats=items(closed({"name": TEXT}, version=TEXT, autoSelect=FLAG)),
    ),
    ("mlops.seldon.io/v1alpha1", "Server"): closed(
        {"serverConfig": TEXT}, extraCapabilities=items(TEXT), replicas=COUNT, podSpec=ANY
    ),
    ("mlops.seldon.io/v1alpha1", "Model"): closed(
        {"storageUri": TEXT}, requirements=items(TEXT), memory=TEXT, replicas=COUNT
    ),
    ("argoproj.io/v1alpha1", "Rollout"): closed(
        {"strategy": closed({"canary": _CANARY}), "selector": ANY, "workloadRef": _REFERENCE},
        replicas=COUNT,
        minReadySeconds=COUNT,
    ),
    ("argoproj.io/v1alpha1", "AnalysisTemplate"): closed({"metrics": items(_METRIC)}, args=items(_ARGUMENT)),
}


def read_resource(path: Path) -> Document:
    """The single document of a file."""
    (document,) = yaml.safe_load_all(path.read_text())
    return dict(document)


def validate_resource(document: Document, release: str) -> None:
    """Raises ValidationError of jsonschema or kubernetes_validate for a key or a value that does not exist.

    Args:
        document: of a kind in ``SPECS``.
        release: of Kubernetes, for the parts that are a pod's.
    """
    schema = closed(
        {"apiVersion": TEXT, "kind": TEXT, "metadata": ANY, "spec": SPECS[document["apiVersion"], document["kind"]]}
    )
    jsonschema.validate(document, schema)
    spec = document["spec"]
    pod = spec.get("podSpec") or {key: value for key, value in spec.items() if key in POD}
    if pod:
        metadata = document["metadata"]
        validate_document({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}, release)
