"""The runtime that serves a release in MLServer, and so in KServe and in Seldon Core 2.

MLServer receives a request by REST or gRPC and passes its tensors on. They are read, checked and answered by the
functions of towline's own service, so both give the same predictions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, ResponseOutput
from mlserver.utils import get_model_uri

from towline.errors import TowlineError
from towline.inference.predictor import Model, open_release
from towline.serving.problems import Problem, check_finite, problem_from_error, wrong_shape
from towline.serving.protocols.open_inference import describe_model, read_tensors, write_outputs

if TYPE_CHECKING:
    from towline.inference.scorer import RowPredictions
    from towline.serving.protocols.json_rows import PredictionRequest

MAX_ROWS = 10_000  # as `towline serve --max-rows`


class TowlineRuntime(MLModel):  # type: ignore[misc]
    """An MLServer runtime for one release.

    ``parameters`` of ``model-settings.json``, which ``towline export mlserver`` writes: ``uri`` is the folder of the
    release, ``extra.digest`` the digest of its manifest, and ``extra.max_rows`` the maximum rows of a request.
    """

    async def load(self) -> bool:
        """Verifies the release and loads it.

        Raises:
            ReleaseError: it differs from its manifest or its recorded digest.
        """
        extra = self.settings.parameters.extra or {}
        self._max_rows = int(extra.get("max_rows", MAX_ROWS))
        self._model = open_release(Path(await get_model_uri(self.settings)), digest=extra.get("digest", ""))
        description = describe_model(self._model)
        self.inputs = [MetadataTensor(**tensor) for tensor in description["inputs"]]
        self.outputs = [MetadataTensor(**tensor) for tensor in description["outputs"]]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Predicts the rows of a request.

        Raises:
            MLServerError: the request does not match the contract of the model; status 4xx, as towline's service.
        """
        try:
            request, predictions = _answer(payload, self._model, self._max_rows)
        except (Problem, TowlineError) as error:
            problem = error if isinstance(error, Problem) else problem_from_error(error)
            raise MLServerError(problem.summary(), problem.type.status) from error
        outputs = [ResponseOutput(**_with_bytes(tensor)) for tensor in write_outputs(predictions, self._model, request)]
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=outputs)


def _answer(payload: InferenceRequest, model: Model, max_rows: int) -> "tuple[PredictionRequest, RowPredictions]":
    request = read_tensors(read_document(payload), model, max_rows)
    try:
        predictions = model.predict_rows(request.rows)
    except ArithmeticError as error:
        raise Problem("unanswerable", f"the model cannot score these rows: {type(error).__name__}") from None
    check_finite(predictions)
    return request, predictions


def read_document(payload: InferenceRequest) -> dict[str, Any]:
    """A request of MLServer as the JSON document of the Open Inference Protocol.

    gRPC has texts as bytes, and no null: NaN is read as null, as in binary tensors over HTTP.

    Raises:
        Problem: a text is not UTF-8, or holds a NUL character.
    """
    return {
        "id": payload.id or None,
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": getattr(tensor.datatype, "value", tensor.datatype),
                "parameters": _content_type(tensor.parameters),
                "data": [_read_value(value) for value in tensor.data],
            }
            for tensor in payload.inputs
        ],
        "outputs": None if payload.outputs is None else [{"name": output.name} for output in payload.outputs],
    }


def _content_type(parameters: Any) -> dict[str, str]:
    name = getattr(parameters, "content_type", None)
    return {} if name is None else {"content_type": name}


def _read_value(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise wrong_shape("a text is not UTF-8") from None
    if isinstance(value, str) and "\0" in value:
        raise wrong_shape("a text holds a NUL character")
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN


def _with_bytes(tensor: dict[str, Any]) -> dict[str, Any]:
    """The output with texts as bytes, which MLServer needs for gRPC and writes as texts in JSON."""
    if tensor["datatype"] != "BYTES":
        return tensor
    return tensor | {"data": [text.encode() for text in tensor["data"]]}
