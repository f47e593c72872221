"""The page on HTTP: routes, fields, limits and errors, from the schema that a server gives at /openapi.json.

What the schema doesn't say of a field, the comment behind it in the code says.
"""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import griffe
from fastapi.exceptions import RequestValidationError
from fields import fields

_INTRODUCTION = """# HTTP

`ddm-rt serve` speaks the image API of OpenAI's clients, with fields of its own beside theirs. The
[guide to serving](../guides/serve.md) shows how to start a server and how to call it.

A server tells its own schema at `/openapi.json`, in the form of OpenAPI 3.1. This page is made of the same schema.
Replies may get more fields in later versions. A request with a field that the server doesn't know is refused.
"""
_LIMITS = "[`ddm-rt serve`](command-line.md#ddm-rt-serve) has options for the settings that users change."
_SETTINGS = "ddm_rt.serve.settings"
_SCHEMA = "ddm_rt.serve.http.schema"
_EVENTS = {
    "STARTED": "First, with `extra_events`. The seeds and codes of all images, and the number of steps.",
    "PROGRESS": "With `extra_events`, at most ten times a second. The steps that are done, and the steps in all.",
    "COMPLETED": "For each image once it is there, in the form of OpenAI's event, with seed and code.",
    "FINISHED": "Last, with `extra_events`. The manifest, and the measured shares where the server has a judge.",
    "error": "Last, in the place of the others. The error in the form of the table above.",
}


def page(package: griffe.Module, schema: dict[str, Any] | None = None) -> str:
    """Markdown. Raises ValueError naming routes, fields and limits that say nothing of themselves."""
    schema = openapi() if schema is None else schema
    made = _Made(package, schema)
    routes = [made.route(method, path, told) for path, ways in schema["paths"].items() for method, told in ways.items()]
    types = [made.type(name) for name in made.answers()]
    limits = [made.settings(name) for name in ("ServeSettings", "HttpSettings")]
    if made.silent:
        raise ValueError(f"nothing says what these are: {', '.join(made.silent)}")
    lines = [_INTRODUCTION.strip(), *routes, "## Answers", *types, "## Errors", _errors(), "## Events", _events()]
    lines += ["## Limits", _LIMITS, *limits]
    return "\n\n".join(lines) + "\n"


def openapi() -> dict[str, Any]:
    """The schema of a server of the shipped bundle."""
    from ddm_rt.sample.pipeline import Pipeline
    from ddm_rt.serve.http.app import create_app
    from ddm_rt.serve.scheduling.scheduler import Scheduler

    with Scheduler(Pipeline.load("digits", threads=1)) as scheduler:
        return create_app(scheduler).openapi()


class _Made:
    """Parts of the page, and what of them says nothing of itself."""

    def __init__(self, package: griffe.Module, schema: dict[str, Any]) -> None:
        self._package, self._types = package, schema["components"]["schemas"]
        self.silent: list[str] = []

    def route(self, method: str, path: str, told: dict[str, Any]) -> str:
        name = f"{method.upper()} {path}"
        lines = [f"## `{name}`", self._told(name, told.get("description"))]
        if told.get("security"):
            lines.append("Where the server has keys, this needs one: `Authorization: Bearer KEY`.")
        if parameters := told.get("parameters"):
            rows = [f"| `{each['name']}` | {each['in']} | {_kind(each['schema'])} |" for each in parameters]
            lines.append("| parameter | in | type |\n| --- | --- | --- |\n" + "\n".join(rows))
        if body := told.get("requestBody"):
            lines.append(self._table(_reference(body["content"]["application/json"]["schema"])))
        forms = told["responses"]["200"].get("content", {})
        answers = [(content, _reference(form.get("schema", {}))) for content, form in forms.items()]
        said = [f"`{content}`" + (f" ([{of}](#{of.lower()}))" if of else "") for content, of in answers]
        lines.append(f"The answer is {' or '.join(said)}." if said else "")
        return "\n\n".join(line for line in lines if line)

    def answers(self) -> list[str]:
        """Objects that are answered; what is asked stands with its route, and choices stand with their fields."""
        return [name for name, told in self._types.items() if "properties" in told and name != "ImageRequest"]

    def type(self, name: str) -> str:
        told = self._told(name, self._types[name].get("description"))
        return f"### {name} {{ #{name.lower()} }}\n\n{told}\n\n{self._table(name)}"

    def settings(self, name: str) -> str:
        owner = self._package.modules_collection[f"{_SETTINGS}.{name}"]
        rows = [
            f"| `{field.name}` | {self._told(f'{name}.{field.name}', _docstring(field))} | `{field.value}` |"
            for field in fields(owner).values()
        ]
        return f"{_docstring(owner)}\n\n| setting | meaning | default |\n| --- | --- | --- |\n" + "\n".join(rows)

    def _table(self, name: str) -> str:
        told = self._types[name]
        asked = name == "ImageRequest"
        rows = []
        for field, about in told["properties"].items():
            meaning = self._told(f"{name}.{field}", about.get("description") or self._comment(name, field))
            row = f"| `{field}` | {self._linked(about)} | {_cell(meaning)} |"
            rows.append(row + (f" {_default(about)} |" if asked else ""))
        head = "| field | type | meaning |" + (" default |\n| --- " if asked else "\n")
        return head + "| --- | --- | --- |\n" + "\n".join(rows)

    def _linked(self, about: dict[str, Any]) -> str:
        """The type, with a link to another type's table, or the choices where it is one of some words."""
        for each in (about, *about.get("anyOf", ())):
            of = each.get("items", each)
            if name := _reference(of):
                choices = self._types[name].get("enum")
                found = " ".join(f"`{choice}`" for choice in choices) if choices else f"[{name}](#{name.lower()})"
                return f"list of {found}" if "items" in each else found
        return _kind(about)

    def _comment(self, name: str, field: str) -> str:
        owner = self._package.modules_collection[_SCHEMA].members.get(name)
        found = fields(owner).get(field) if isinstance(owner, griffe.Class) else None
        return "" if found is None else _docstring(found)

    def _told(self, name: str, text: str | None) -> str:
        if not text:
            self.silent.append(name)
        return _cell(text or "")


def _reference(about: dict[str, Any]) -> str:
    return str(about.get("$ref", "")).rpartition("/")[2]


def _kind(about: dict[str, Any]) -> str:
    """A type in words, with its limits."""
    kinds = [each for each in about.get("anyOf", (about,)) if each.get("type") != "null"]
    if len(kinds) > 1:
        return " or ".join(map(_kind, kinds))
    (one,) = kinds
    if "enum" in one or "const" in one:
        return " ".join(f"`{choice}`" for choice in one.get("enum", [one.get("const")]))
    found = {"string": "text", "integer": "whole number", "array": "list"}.get(one.get("type", ""), one.get("type", ""))
    if "items" in one:
        found = f"list of {_kind(one['items'])}"
    limits = [
        f"{words} {_number(one[name])}{unit}"
        for name, words, unit in (
            ("minimum", "at least", ""),
            ("exclusiveMinimum", "above", ""),
            ("maximum", "at most", ""),
            ("minLength", "at least", " characters"),
            ("maxLength", "at most", " characters"),
            ("maxItems", "at most", " entries"),
        )
        if name in one
    ]
    return ", ".join([found, *limits])


def _number(value: float) -> str:
    """Of a schema, whose numbers are doubles."""
    return "2^64 - 1" if value >= 2**64 - 1 else f"{value:g}"


def _default(about: dict[str, Any]) -> str:
    default = about.get("default")
    return "" if default is None else f"`{default}`"


def _docstring(found: griffe.Object) -> str:
    return "" if found.docstring is None else " ".join(found.docstring.value.partition("\n\n")[0].split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("*", r"\*").replace("<", r"\<")


def _errors() -> str:
    """A row for each kind of error: what becomes of ours on the way to a client is asked, not written down."""
    from starlette.exceptions import HTTPException

    from ddm_rt.errors import BundleError, DdmError
    from ddm_rt.sample.generation import Cancelled
    from ddm_rt.serve.http import errors
    from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany

    wrong = {"loc": ("body", "n"), "msg": "", "type": "int_type"}
    known = [
        ("The body isn't JSON.", errors.malformed(RequestValidationError([wrong | {"type": "json_invalid"}]))),
        (
            "The server doesn't know a field.",
            errors.malformed(RequestValidationError([wrong | {"type": "extra_forbidden"}])),
        ),
        ("A field has a wrong type or is out of its limits.", errors.malformed(RequestValidationError([wrong]))),
        ("The bundle can't do what a field asks for.", errors.refused(DdmError("n is 0; expected at least 1"))),
        ("The request can't be done before its deadline.", errors.refused(DeadlineExceeded(""))),
        ("The key is missing or wrong.", errors.invalid("", code="invalid_api_key", status=401)),
        ("There is no such model.", errors.invalid("", "model", "model_not_found", 404)),
        ("The server neither edits images nor varies them.", errors.invalid("", code="unsupported", status=404)),
        ("There is no such path, or the image is no longer kept.", errors.failure_of(HTTPException(404))),
        ("The path has no such method.", errors.failure_of(HTTPException(405))),
        ("The body didn't arrive in time.", errors.failure_of(HTTPException(408))),
        ("The body isn't said to be JSON.", errors.invalid("", code="unsupported_media_type", status=415)),
        ("The server answers to other host names only.", errors.invalid("", code="host_not_allowed", status=421)),
        ("It isn't clear where the body ends.", errors.invalid("", code="invalid_framing")),
        ("The body is too long.", errors.failure_of(HTTPException(413))),
        ("The queue is full.", errors.refused(QueueFull("", 1.0))),
        ("The key has too many requests under way.", errors.refused(TooMany("", 1.0))),
        ("The request was cancelled.", errors.failed(Cancelled())),
        ("The server failed; its log says why.", errors.failed(BundleError(""))),
        ("The ledger can't be used now.", errors.unavailable()),
        ("The server has too many requests under way.", replace(errors.unavailable(), code="overloaded")),
        ("The server is stopping.", errors.refused(Draining())),
        ("The deadline passed while images were made.", errors.failed(DeadlineExceeded(""))),
    ]
    table = {each.code for _, each in known}
    if missing := sorted(_codes(Path(errors.__file__).parent) - table):
        raise ValueError(f"codes of errors that the page on HTTP doesn't have: {', '.join(missing)}")
    rows = [
        f"| {each.status} | `{each.type}` | {f'`{each.code}`' if each.code else ''} | {when} |"
        + (" `Retry-After` |" if each.retry_after_s is not None else " |")
        for when, each in sorted(known, key=lambda row: row[1].status)
    ]
    return (
        "An error has OpenAI's form: a status, and an `error` object with `message`, `type`, `param` (the field) and "
        "`code`.\n\n| status | type | code | when | header |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )


def _codes(folder: Path) -> set[str]:
    """Codes of errors in the source: those that are given to `invalid` and `Failure`."""
    found = set()
    for path in folder.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(call.func, "id", "") if isinstance(call, ast.Call) else ""
            if name in ("invalid", "Failure"):
                place = {"invalid": 2, "Failure": 3}[name]
                given = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "code")]
                found |= {str(code.value) for code in given if isinstance(code, ast.Constant) and code.value}
    return found


def _events() -> str:
    from ddm_rt.serve.http import generations

    rows = [f"| `{getattr(generations, name, name)}` | {when} |" for name, when in _EVENTS.items()]
    return (
        "With `stream=true`, `POST /v1/images/generations` answers with server-sent events.\n\n"
        "| event | when, and what it holds |\n| --- | --- |\n" + "\n".join(rows)
    )
