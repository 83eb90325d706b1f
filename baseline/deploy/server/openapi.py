"""The description of the server's API in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from baseline import __version__

if TYPE_CHECKING:
    from baseline.deploy.server.predictor import Predictor

__all__ = ["openapi_schema"]


ERROR_MESSAGES = {
    400: "The request cannot be read.",
    403: "The request used an unknown host name, or came from another site's page.",
    408: "The request was incomplete when its time was up.",
    413: "Too many bytes, pixels or images.",
    415: "The request, or a file in it, has an unsupported format.",
    422: "A value is invalid, or an image is damaged.",
    503: "Too many images are waiting; Retry-After contains the number of seconds to wait.",
}
"""Descriptions of the error codes."""

NO_METRICS = "The package prometheus-client is not installed."

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BINARY: Schema = {"type": "string", "format": "binary"}
UNLIKE_PROPERTIES: Schema = {
    "unlike": {**PROBABILITY, "description": "How unlike the training images it is."},
    "rejected": {"type": "boolean", "description": "Whether it is more unlike than images like those should be."},
}
SET_PROPERTY: Schema = {
    "set": {"type": "array", "items": STRING, "description": "Classes that contain the true one at the given rate."}
}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}


def openapi_schema(predictor: Predictor) -> Schema:
    """Return the description of the API."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "baseline", "version": __version__, "description": "Predicts the classes of images."},
        "paths": {
            "/predict": {"post": _predict_operation(predictor)},
            "/gradcam": {"post": _gradcam_operation()},
            "/health": {"get": {
                "summary": "Check whether the server answers.",
                "responses": _responses("application/json", {"type": "object"}, "It does.", {}),
            }},
            "/ready": {"get": {
                "summary": "Check whether the server can take more images.",
                "responses": _responses("application/json", {"type": "object"}, "It can.", {503: ERROR_MESSAGES[503]}),
            }},
            "/metrics": {"get": {
                "summary": "Read the counters of the server in Prometheus's text format.",
                "responses": _responses("text/plain", STRING, "The counters.", {501: NO_METRICS}),
            }},
        },
        "components": {"schemas": {
            "Error": {"type": "object", "required": ["error"], "properties": {"error": STRING}},
        }},
    }  # fmt: skip


def _predict_operation(predictor: Predictor) -> Schema:
    several = {"type": "array", "items": BASE64, "maxItems": predictor.limits.images}
    prediction = {
        "type": "object",
        "properties": {
            "name": {**STRING, "description": "The file name, as it was sent."},
            "predicted": {"type": "array", "items": STRING} if predictor.model.multilabel else STRING,
            "confidence": {**PROBABILITY, "description": "Calibrated, if the run was."},
            **(UNLIKE_PROPERTIES if predictor.reject_unlike else {}),
            **(SET_PROPERTY if predictor.set_threshold is not None else {}),
            "probabilities": {"type": "object", "additionalProperties": PROBABILITY, "description": "Highest first."},
            "error": {**STRING, "description": "Why this image was refused; the other properties are then missing."},
        },
    }
    tta = {"type": "boolean", "description": "Whether probabilities are averaged over views (TTA)."}
    items = {"type": "array", "items": prediction}
    predictions = {"type": "object", "properties": {"tta": tta, "predictions": items}}
    return {
        "summary": "Predict the classes of images. If some of several images are refused, they have an `error`; if all "
                   "are, the answer is an error.",
        "parameters": [{"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1},
                        "description": "Number of most probable classes to return; default: all."}],
        "requestBody": _body({"image": {"type": "array", "items": BINARY}}, {"image": BASE64, "images": several}),
        "responses": _responses("application/json", predictions, "One prediction per image, in order.", ERROR_MESSAGES),
    }  # fmt: skip


def _gradcam_operation() -> Schema:
    choice = {"class": {**STRING, "description": "The class to explain; default: the most probable one."}}
    errors = {**ERROR_MESSAGES, 404: "The network has no spatial feature map."}
    return {
        "summary": "Show which parts of an image speak for a class (Grad-CAM).",
        "requestBody": _body({"image": BINARY, **choice}, {"image": BASE64, **choice}),
        "responses": _responses("image/jpeg", BINARY, "The image, yellow where it speaks for the class.", errors),
    }


def _body(form: Schema, data: Schema) -> Schema:
    """A request body that is either a form or JSON, by their properties."""
    properties = {"multipart/form-data": form, "application/json": data}
    content = {kind: {"schema": {"type": "object", "properties": value}} for kind, value in properties.items()}
    return {"required": True, "content": content}


def _responses(kind: str, schema: Schema, description: str, errors: Mapping[int, str]) -> Schema:
    success = {"200": {"description": description, "content": {kind: {"schema": schema}}}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return success | {str(code): {"description": reason, "content": content} for code, reason in errors.items()}
