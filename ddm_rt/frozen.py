"""What every configuration model is built on: frozen models, kinds of fields, and parsing that raises DdmError."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from ddm_rt.errors import DdmError

M = TypeVar("M", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every configuration model: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Lean(Frozen):
    """A model whose files don't hold the fields `LEFT_OUT` where these have their defaults.

    What was made before those fields keeps its file, and the digest of its checkpoints.
    """

    LEFT_OUT: ClassVar[tuple[str, ...]] = ()  # where they have their defaults

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        if info.mode != "json":
            return tree
        unset = {name for name in self.LEFT_OUT if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in tree.items() if name not in unset}


def parse(model: type[M], tree: Any, where: str | Path) -> M:
    """Validate `tree` as `model`; the first problem becomes one DdmError that names `where` and the field."""
    return _checked(lambda: model.model_validate(tree), where)


def parse_json(model: type[M], text: str | bytes, where: str | Path) -> M:
    """As `parse`, from JSON text."""
    return _checked(lambda: model.model_validate_json(text), where)


def parse_open(model: type[M], text: str | bytes, where: str | Path) -> M:
    """As `parse_json`, of a file that newer programs write too: fields that `model` hasn't got are ignored."""
    return _checked(lambda: model.model_validate_json(text, extra="ignore"), where)


def _checked(validate: Callable[[], M], where: str | Path) -> M:
    try:
        return validate()
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and not first["loc"]:  # our own words about several fields
            raise DdmError(f"{where}: {first['ctx']['error']}") from error
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        raise DdmError(f"{where}: field {field}: {first['msg']}") from error
