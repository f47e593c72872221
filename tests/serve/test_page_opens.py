"""The page at / is drawn by its own scripts. What it does in use is in `test_page.py`, with Playwright."""

import re
import subprocess
from pathlib import Path

from chromium import FLAGS
from http_server import fake_pipeline, running
from patience import PATIENCE_S
from toolchain import needs


@needs("chromium")
def test_the_page_tells_the_bundle_and_its_balance(tmp_path: Path) -> None:
    with running(fake_pipeline()) as server:
        server.client().post("/v1/images/generations", json={"n": 4, "steps": 1}).raise_for_status()
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        # Time in the page goes on only while nothing is loaded or run, so a busy machine changes nothing.
        command = ["chromium", "--headless", *FLAGS, profile, "--virtual-time-budget=10000", "--dump-dom", server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    page = done.stdout
    assert "<title>fake · ddm-rt</title>" in page
    assert '<p id="about">8 × 8 · 4 codes in 2 top codes · ddim</p>' in page
    assert '<div class="field wide" id="prompt-field" hidden="">' in page
    basis = "All requests in the scope <strong>default</strong> with the target <strong>uniform</strong>."
    assert basis in page
    table = page.partition('<table id="assigned"')[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]+)<", row) for row in table.split("<tr>")[2:]]
    assert rows == [["Top code 0", "50.0%", "2"], ["Top code 1", "50.0%", "2"]]
