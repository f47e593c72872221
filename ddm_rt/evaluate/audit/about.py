"""What no program can measure: who provides a model, what it is for, and who answers for it. A TOML file tells it."""

import tomllib
from pathlib import Path

from pydantic import Field

from ddm_rt.config import Frozen, parse
from ddm_rt.errors import DdmError
from ddm_rt.files import read

NOT_STATED = "not stated"


class About(Frozen):
    """Fields of `--about FILE`; what isn't there is shown as "not stated"."""

    model: str | None = Field(default=None, min_length=1)
    version: str | None = Field(default=None, min_length=1)
    provider: str | None = Field(default=None, min_length=1)
    licence: str | None = Field(default=None, min_length=1)
    base_model: str | None = Field(default=None, min_length=1)
    pipeline_tag: str | None = Field(default=None, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    intended_use: str | None = Field(default=None, min_length=1)
    excluded_use: str | None = Field(default=None, min_length=1)
    people_affected: str | None = Field(default=None, min_length=1)
    training_data: str | None = Field(default=None, min_length=1)
    labelling: str | None = Field(default=None, min_length=1)
    representativeness: str | None = Field(default=None, min_length=1)
    gaps: str | None = Field(default=None, min_length=1)
    mitigation: str | None = Field(default=None, min_length=1)
    groups_defined_by: str | None = Field(default=None, min_length=1)
    rule_approved_by: str | None = Field(default=None, min_length=1)
    residual_risk: str | None = Field(default=None, min_length=1)
    drift_policy: str | None = Field(default=None, min_length=1)
    next_audit: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    contact: str | None = Field(default=None, min_length=1)

    def told(self, *names: str) -> list[tuple[str, str]]:
        """Each field's name in words and its text."""
        return [(name.replace("_", " "), getattr(self, name) or NOT_STATED) for name in names]


def read_about(path: Path | None) -> About:
    """Raises DdmError naming the file, and the field that is unknown or isn't what it should be."""
    if path is None:
        return About()
    content = read(path, "expected a TOML file with fields such as provider and intended_use")
    try:
        tree = tomllib.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DdmError(f"{path}: not a TOML file ({error})") from error
    if unknown := sorted(tree.keys() - About.model_fields.keys()):
        raise DdmError(f"{path}: field {unknown[0]} is unknown; known: {', '.join(About.model_fields)}")
    dates = {name: value.isoformat() for name, value in tree.items() if hasattr(value, "isoformat")}
    return parse(About, tree | dates, path)
