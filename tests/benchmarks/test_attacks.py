"""benchmarks/attacks.py runs against the real server, which holds; and it notices a server that doesn't."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attacks
import pytest
from attack_parts import floods, framing
from patience import PATIENCE_S
from store import load


@pytest.mark.slow(reason="starts a server; the quick tests below show that an attack which succeeds is told")
@pytest.mark.parametrize(("only", "count"), [("TE", 14), ("", 59)])
def test_the_server_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str, count: int) -> None:
    """Connections are held too shortly for the server to have to end them, and all clients have patience: so nothing
    rests on time.
    """
    monkeypatch.setattr(attacks, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(floods, "SLACK_S", PATIENCE_S)
    monkeypatch.setattr(framing, "MOST_S", PATIENCE_S)
    attacks.main(["--only", only, "--seconds", "2", "--results", str(tmp_path)])
    record = load("attacks", tmp_path)
    assert record is not None
    assert len(record["rows"]) == count
    for row in record["rows"]:
        assert row["held"], row
    assert f"of {count} attacks were held" in (tmp_path / "serving.md").read_text()


class Naive(BaseHTTPRequestHandler):
    """Python's own handler, which takes the first length and doesn't know chunks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_answers_hidden_requests_is_found_out() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Naive) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            assert attacks.main([f"http://127.0.0.1:{server.server_port}", "--only", "TE"]) == 1
        finally:
            server.shutdown()


def test_each_attack_has_a_name_of_its_own() -> None:
    names = [each.name for each in framing.framed("localhost", None)]
    assert len(set(names)) == len(names)
