"""JSON schemas of classes."""

from __future__ import annotations

from typing import Any, Final

from pydantic import PydanticUserError, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DatetimeSchema

from safe_integrations.errors import InvalidArgumentError

LOCAL_TIME: Final = "date-time-local"
"""The format of times that must not have an offset."""


class _Schemas(GenerateJsonSchema):
    """As pydantic's, but times that must not have an offset are told from those that must."""

    def datetime_schema(self, schema: DatetimeSchema) -> JsonSchemaValue:
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "format": LOCAL_TIME}
        return super().datetime_schema(schema)


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic model, a TypedDict, a dataclass or the like.

    Raises:
        InvalidArgumentError: Pydantic cannot describe it; before Python 3.12 it needs the
            `TypedDict` of `typing_extensions`.
    """
    try:
        describe = getattr(kind, "model_json_schema", None) or TypeAdapter(kind).json_schema
        schema: dict[str, Any] = describe(schema_generator=_Schemas)
        return schema
    except PydanticUserError as error:
        raise InvalidArgumentError("schema", kind, error.message) from None
