"""A real Prometheus scrapes a real server: the dashboard's queries give figures, and rules fire on what goes wrong.

Two rules have lower bounds here than operators have, because neither a first image that takes half a minute nor a
ledger that breaks its promise is to be had. promtool's tests (`alerts.test.yaml`) have the bounds that count.
"""

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from http_server import GENERATIONS
from patience import PATIENCE_S, settled
from served import serving
from toolchain import needs

DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = [needs("prometheus"), pytest.mark.slow(reason="starts two programs and waits for scrapes")]

# What tests have in the place of what operators have.
HURRIED = {"for: 10m": "for: 1s", "for: 5m": "for: 1s", "> 0.02": ">= 0", "> 500": "> 0", "> 30": "> 0"}


class Prometheus:
    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False)

    def is_ready(self) -> bool:
        """Whether it answers queries: it listens before it has read its storage, and gives 503 until then."""
        return self._client.get("/-/ready").status_code == 200

    def ask(self, query: str) -> list[Any]:
        """The samples that a query gives now. Raises where Prometheus can't answer it."""
        answer = self._client.get("/api/v1/query", params={"query": query})
        assert answer.status_code == 200, (query, answer.text)
        found: list[Any] = answer.json()["data"]["result"]
        return found

    def firing(self) -> set[str]:
        alerts = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def rules(self) -> list[Any]:
        """Each rule as Prometheus has it, with the error that its evaluation gave, if any."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `target` (HOST:PORT) each second, with the rules in a hurry."""
    rules = (DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    for given, hurried in HURRIED.items():
        rules = rules.replace(given, hurried)
    (folder / "alerts.yaml").write_text(rules, encoding="utf-8")
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "ddm", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen(
        [*command, "--web.listen-address=127.0.0.1:0", "--log.level=info"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        address = None
        for line in process.stderr:
            said.append(line)
            if (address := re.search(r"Listening on\" address=(\S+)", line)) is not None:
                break
        assert address is not None, "".join(said)[-2000:]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        prometheus = Prometheus(f"http://{address[1]}")
        assert settled(prometheus.is_ready)
        assert settled(lambda: bool(prometheus.ask("ddm_build_info")))
        yield prometheus
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def panels() -> list[tuple[str, str]]:
    """Title and query of each figure of the dashboard, as Grafana sends it for the last minutes."""
    found = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    asked = [(panel["title"], target["expr"]) for panel in found for target in panel["targets"]]
    return [(title, text.replace("$__rate_interval", "1m").replace("$instance", ".*")) for title, text in asked]


def until(prometheus: Prometheus, name: str, provoke: Callable[[], object]) -> None:
    """Provokes what a rule is about, again and again, until it fires."""

    def fires() -> bool:
        provoke()
        return name in prometheus.firing()

    assert settled(fires), (name, prometheus.rules())


def under_way_of(metrics: str) -> float:
    """How many requests the server works on."""
    found = re.search(r"^ddm_requests_under_way (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_each_query_of_the_dashboard_gives_figures(tmp_path: Path) -> None:
    # One image in the queue: most of what comes at once is refused, and figures of refusals are there.
    with (
        serving("digits", "--backend", "onnxruntime", "--slots", "2", "--queue", "2", "--max-images", "2") as url,
        scraping(tmp_path, url.removeprefix("http://")) as prometheus,
        httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client,
    ):

        def ask() -> None:
            client.post(GENERATIONS, json={"n": 2, "steps": 2})

        def empty() -> list[tuple[str, str]]:
            """Queries without data: a figure that is not a number is none."""
            left = []
            for title, query in panels():
                samples = prometheus.ask(query)
                if not samples or any(sample["value"][1] == "NaN" for sample in samples):
                    left.append((title, query))
            return left

        def seen() -> bool:
            threads = [threading.Thread(target=ask) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return not empty()

        assert settled(seen), empty()
        rules = prometheus.rules()
        assert len(rules) == (DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8").count("- alert:")
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        for name in ("DdmOverload", "DdmSlowFirstImage", "DdmShareError"):
            until(prometheus, name, seen)
        assert prometheus.firing().isdisjoint({"DdmLedgerErrors", "DdmFailures"})


def test_a_disk_that_is_full_raises_the_alarm(tmp_path: Path, own_file_system: None) -> None:
    disk, number = tmp_path / "disk", tmp_path / "disk.pid"
    disk.mkdir()
    # Only the server sees the small disk, and whoever comes through its process.
    script = 'mount -t tmpfs -o size=1m tmpfs "$0" && echo $$ >"$0.pid" && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk))
    count, body = 24, {"n": 2, "steps": 200, "deadline_s": 900}
    with (
        serving("digits", "--backend", "onnxruntime", "--ledger", str(disk / "l"), prefix=prefix) as url,
        scraping(tmp_path, url.removeprefix("http://")) as prometheus,
        httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client,
        ThreadPoolExecutor(count) as pool,
    ):
        under_way = [pool.submit(client.post, GENERATIONS, json=body, timeout=None) for _ in range(count)]
        # More than the rule needs. Those that the queue has no room for are refused, and the first may soon be done.
        assert settled(lambda: under_way_of(client.get("/metrics").text) >= 10)
        seen = Path(f"/proc/{number.read_text().strip()}/root{disk}/all")
        with pytest.raises(OSError, match="No space left"):
            seen.write_bytes(bytes(2**20))
        told = [(each.result().status_code, each.result().json().get("error", {}).get("code")) for each in under_way]
        # The disk gives out whole blocks: what fits into the ledger's last one is still written.
        assert set(told) <= {(200, None), (429, "queue_full"), (503, "ledger_unavailable")}
        assert (503, "ledger_unavailable") in told
        for name in ("DdmFailures", "DdmLedgerErrors"):
            until(prometheus, name, lambda: None)
        assert client.get("/readyz").status_code == 503
        seen.unlink()
        assert client.post(GENERATIONS, json={"steps": 1}).status_code == 200
        assert client.get("/readyz").status_code == 200
