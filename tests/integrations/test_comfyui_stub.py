"""The node pack in a stub of ComfyUI (`tests/comfyui_stub.py`), against real servers."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_stub import StubComfyUI, StubRefusal
from http_server import Running, fake_pipeline, running
from served import serving

from ddm_rt.serve.http.keys import Keys
from ddm_rt.serve.settings import HttpSettings

torch = pytest.importorskip("torch", reason="needs ddm-rt[train], as ComfyUI has torch")

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
KEY = "comfy-0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(fake_pipeline()) as server:
        yield server


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubComfyUI:
    """With the pack copied into its folder, as the page says."""
    for name in ("DDM_RT_SERVER", "DDM_RT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return StubComfyUI(Path(shutil.copytree(PACK, tmp_path / "custom_nodes" / "ddm_rt")))


def _graph(comfy: StubComfyUI, url: str, **inputs: Any) -> dict[str, Any]:
    """Images, and the status after them."""
    images = comfy.defaults("DDMBalancedGenerate") | {"server": url, "scope": "comfy"} | inputs
    return {
        "1": {"class_type": "DDMBalancedGenerate", "inputs": images},
        "2": {"class_type": "DDMBalanceStatus", "inputs": {"server": url, "scope": images["scope"], "after": ["1", 0]}},
    }


def test_in_a_stub_the_nodes_keep_the_contract(comfy: StubComfyUI) -> None:
    assert set(comfy.nodes) == set(comfy.names)
    for node in comfy.nodes.values():
        kinds = node.INPUT_TYPES()
        assert set(kinds) <= {"required", "optional", "hidden"}
        for kind, more in (*kinds["required"].values(), *kinds.get("optional", {}).values()):
            assert kind in ("STRING", "INT", "IMAGE")
            assert isinstance(more, dict)
        assert callable(getattr(node, node.FUNCTION))
        assert isinstance(node.CATEGORY, str)
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert len(getattr(node, "OUTPUT_IS_LIST", node.RETURN_TYPES)) == len(node.RETURN_TYPES)


def test_in_a_stub_images_come_as_tensors_with_their_codes(comfy: StubComfyUI, server: Running) -> None:
    graph = _graph(comfy, server.url, n=3, seed=5, steps=6, scope="tensors")
    [images], [told], codes = comfy.outputs(graph, "1")
    assert images.dtype == torch.float32
    assert tuple(images.shape) == (3, 8, 8, 3)
    expected = fake_pipeline().generate(n=3, seed=5, num_steps=6, scope="tensors")
    assert np.array_equal(np.round(images.numpy() * 255).astype(np.uint8), expected.images)
    assert codes == [image["code"] for image in expected.manifest["images"]]
    assert told == ", ".join(map(str, codes))


def test_in_a_stub_what_did_not_change_is_not_made_again(comfy: StubComfyUI, server: Running) -> None:
    """No codes are drawn for images that are there already; the status is asked anew each time."""
    graph = _graph(comfy, f"{server.url}/v1", n=2, scope="cached")
    [first] = comfy.run(graph)["2"]["text"]
    assert comfy.executed == ["1", "2"]
    [again] = comfy.run(graph)["2"]["text"]
    assert comfy.executed == ["2"]
    assert first == again
    assert first.startswith(
        "cached, target uniform\nassigned: 2 images (2 done, 0 under way, 0 to be handed out again)"
    )
    graph["1"]["inputs"]["seed"] += 1
    assert "assigned: 4 images" in comfy.run(graph)["2"]["text"][0]


def test_in_a_stub_targets_are_told_apart(comfy: StubComfyUI, server: Running) -> None:
    comfy.run(_graph(comfy, server.url, n=2, scope="two"))
    [told] = comfy.run(_graph(comfy, server.url, n=4, scope="two", target="code:0=0.25,code:1=0.75"))["2"]["text"]
    assert "two, target uniform\nassigned: 2 images" in told
    assert "\nassigned: 4 images" in told
    assert "top code 0: 0.250 (1)" in told
    assert "measured: nothing" in told


def test_in_a_stub_nothing_is_asked_of_the_status_before_it_has_something(comfy: StubComfyUI, server: Running) -> None:
    graph = {"1": {"class_type": "DDMBalanceStatus", "inputs": {"server": server.url, "scope": "empty"}}}
    assert comfy.run(graph)["1"]["text"] == ("no images yet",)


@pytest.mark.parametrize("inputs", [{"n": 0}, {"seed": 2**53}, {"steps": -1}])
def test_in_a_stub_the_page_s_limits_hold(comfy: StubComfyUI, server: Running, inputs: dict[str, int]) -> None:
    with pytest.raises(StubRefusal, match=next(iter(inputs))):
        comfy.run(_graph(comfy, server.url, **inputs))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"size": "64x64"}, "answers 400: size is '64x64'; this server makes: 8x8"),
        ({"target": "half"}, "answers 400: .*target"),
        ({"n": 1000}, "answers 400: n is 1000"),
        ({"server": "localhost:8000"}, "server is 'localhost:8000'; expected an address as http://127.0.0.1:8000"),
        ({"server": "http://[::1"}, r"server is 'http://\[::1'; expected an address"),
        ({"server": "http://my host:8000"}, "no server answers at http://my host:8000"),
        ({"server": "http://localhost:abc"}, "no server answers at http://localhost:abc"),
        ({"server": "http://127.0.0.1:1"}, "no server answers at http://127.0.0.1:1 .*ddm-rt serve BUNDLE"),
    ],
)
def test_in_a_stub_errors_are_words(comfy: StubComfyUI, server: Running, inputs: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        comfy.run(_graph(comfy, server.url, **inputs))
    assert type(caught.value).__name__ == "ServerError"


def test_in_a_stub_the_key_goes_to_the_server_that_the_environment_names(
    comfy: StubComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(f"comfy {KEY}\n")
    with running(fake_pipeline(), http=HttpSettings(), keys=Keys.load(tmp_path / "keys")) as server:
        graph = _graph(comfy, server.url)
        with pytest.raises(Exception, match=r"answers 401: .*DDM_RT_API_KEY isn't set"):
            comfy.run(graph)
        monkeypatch.setenv("DDM_RT_API_KEY", KEY)
        with pytest.raises(Exception, match=r"answers 401: .*DDM_RT_SERVER names it"):
            comfy.run(graph)
        monkeypatch.setenv("DDM_RT_SERVER", server.url)
        assert comfy.run(graph)["2"]["text"]
        assert comfy.defaults("DDMBalanceStatus")["server"] == server.url


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/v1/balance?scope=moved"):
            self.send_response(302)
            self.send_header("Location", "/v1/balance")
        else:
            self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"null")

    def log_message(self, *_: object) -> None: ...


def test_in_a_stub_other_servers_are_told_from_ours(comfy: StubComfyUI) -> None:
    """One that redirects gets no second request, which would carry the key."""
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{elsewhere.server_port}"
        for scope, reason in (("moved", "answers 302: "), ("here", "answers without data; expected a ddm-rt server")):
            graph = {"1": {"class_type": "DDMBalanceStatus", "inputs": {"server": url, "scope": scope}}}
            with pytest.raises(Exception, match=reason):
                comfy.run(graph)
        elsewhere.shutdown()


@pytest.mark.slow(reason="starts a server, which nothing shorter shows")
def test_in_a_stub_the_digits_and_their_judge(comfy: StubComfyUI) -> None:
    with serving("digits", "--threads", "1", "--judge", "digits", "--groups", "3,8") as url:
        graph = _graph(comfy, f"{url}/v1", n=8, prompt="a digit", steps=8)
        [images], _, codes = comfy.outputs(graph, "1")
        assert tuple(images.shape) == (8, 32, 32, 3)
        assert len(codes) == 8
        [told] = comfy.run(graph)["2"]["text"]
    assert "assigned: 8 images (8 done" in told
    assert "measured: 8 images" in told
    assert "group 3: " in told
