"""towline config: the keys of a config file."""

import json

import click

from towline.cli import emit, json_option


@click.group()
def config() -> None:
    """Describes config files.

    \b
    Example:
      towline config schema
    """


@config.command(short_help="Prints every key of a config file.")
@json_option
def schema(as_json: bool) -> None:
    """Prints every key of a config file, its type, default and meaning.

    \b
    Examples:
      towline config schema
      towline config schema --json > towline.schema.json    for an editor's completion
    """
    from towline.config import PipelineConfig
    from towline.config.record import ConfigJsonSchema

    document = PipelineConfig.model_json_schema(schema_generator=ConfigJsonSchema)
    emit(document, as_json, lambda: "\n".join(_describe(document, document, "")))


def _describe(node: dict[str, object], root: dict[str, object], path: str) -> list[str]:
    lines: list[str] = []
    properties = node.get("properties", {})
    assert isinstance(properties, dict)  # noqa: S101 - JSON schema's own shape
    required = node.get("required", [])
    assert isinstance(required, list)  # noqa: S101 - as above
    for name, field in properties.items():
        inner = _models(field, root)
        default = "required" if name in required else f"default {_notation(field.get('default', {}))}"
        key = f"{path}{name}"
        is_list = (
            "[]"
            if "array" in str(field.get("type", ""))
            or any(option.get("type") == "array" for option in field.get("anyOf", []))
            else ""
        )
        meaning = field.get("description", "")
        if inner and name != "source":
            lines.append(
                f"{key}{is_list}" + (f"  ({default})" if name in required else "") + (f"  {meaning}" if meaning else "")
            )
            inner_keys = ".*." if field.get("additionalProperties") else f"{is_list}."
            lines += _describe(inner, root, f"{key}{inner_keys}")
        else:
            lines.append(f"{key}: {_type(field, root)}, {default}" + (f"  {meaning}" if meaning else ""))
    return lines


def _models(field: dict[str, object], root: dict[str, object]) -> dict[str, object] | None:
    pending = [field]
    while pending:
        node = pending.pop(0)
        reference = node.get("$ref")
        if isinstance(reference, str):
            definitions = root["$defs"]
            assert isinstance(definitions, dict)  # noqa: S101 - as above
            definition = definitions[reference.rpartition("/")[2]]
            return dict(definition) if "properties" in definition else None
        for key in ("items", "additionalProperties"):
            child = node.get(key)
            if isinstance(child, dict):
                pending.append(child)
        options = node.get("anyOf", [])
        if isinstance(options, list):
            pending += options
    return None


def _type(field: dict[str, object], root: dict[str, object]) -> str:
    options = field.get("anyOf")
    if isinstance(options, list):
        return " | ".join(_type(option, root) for option in options)
    if "enum" in field:
        values = field["enum"]
        return " | ".join(map(_notation, values)) if isinstance(values, list) else _notation(values)
    if isinstance(field.get("$ref"), str):
        return str(field["$ref"]).rpartition("/")[2]
    kind = str(field.get("type", "any"))
    if kind == "array" and isinstance(field.get("items"), dict):
        return f"list of {_type(field['items'], root)}"  # type: ignore[arg-type]
    return {"object": "mapping", "array": "list"}.get(kind, kind)


def _notation(value: object) -> str:
    """A value as it is written in a config, with texts in quotes."""
    return json.dumps(value, ensure_ascii=False)
