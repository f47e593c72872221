"""Whatever is sent, the server doesn't break: bodies from the OpenAPI schema, and around it."""

from collections.abc import Iterator

import pytest
from http_server import client_of, fake_pipeline
from hypothesis import HealthCheck, given, settings

from ddm_rt.serve.settings import HttpSettings, ServeSettings

schemathesis = pytest.importorskip("schemathesis", reason="needs ddm-rt[integration]")
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance  # noqa: E402

pytestmark = pytest.mark.slow(reason="needs ddm-rt[integration]")

CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance)
PATHS = (
    ("/v1/images/generations", "POST"),
    ("/images/{name}", "GET"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/v1/balance", "GET"),
    ("/metrics", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
)


@pytest.fixture(scope="module")
def described() -> Iterator[schemathesis.BaseSchema]:
    # schemathesis asks for an application by this name.
    named = HttpSettings(allowed_hosts=("testserver",))
    with client_of(fake_pipeline(), ServeSettings(max_images=4, max_steps=10), named) as client:
        yield schemathesis.openapi.from_asgi("/openapi.json", client.app)


def test_every_operation_is_tested(described: schemathesis.BaseSchema) -> None:
    found = {(result.ok().path, result.ok().method.upper()) for result in described.get_all_operations()}
    assert found == set(PATHS)


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [(*place, GenerationMode.POSITIVE) for place in PATHS]
    + [(*place, GenerationMode.NEGATIVE) for place in PATHS if place[0] in ("/v1/images/generations", "/v1/balance")],
)
def test_requests_by_the_schema_and_against_it(
    described: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    operation = described[path][method]

    @settings(max_examples=30 if method == "POST" else 8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("deadline_s"), float):
            case.body.pop("deadline_s")  # a thousandth of a second is a fair request, and 504 the answer to it
        case.call_and_validate(checks=CHECKS)

    ask()
