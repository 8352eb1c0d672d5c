"""A lesson in a real JupyterLab: all cells run, folded parts fold, views move, and no
chapter is rewritten.

Needs Playwright (the extra `browser`), Chromium, and the trained models.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import notebooks
import pytest
from test_browser import CHROMIUM, WHERE

ROOT = Path(__file__).resolve().parent.parent
sync_api = pytest.importorskip("playwright.sync_api", reason=WHERE)
STAGES = Path(os.environ.get("POSTTRAIN_STAGES", ROOT / "stages"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
    pytest.mark.skipif(
        not list(STAGES.glob("reward-*.json")),
        reason="the book has not been built yet (make book)",
    ),
]
LONGEST = 180  # seconds that a lesson may take


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on working copies, and their folder."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "work"
    notebooks.write_copies(folder)
    port = free_port()
    options = {
        "ServerApp.port": port,
        "ServerApp.root_dir": home,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": "",
        "ServerApp.allow_root": True,
        "ServerApp.log_level": "ERROR",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    # Open no tabs that another JupyterLab of this user had
    tabs = dict(JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"))
    here = tabs | dict(JUPYTER_CONFIG_PATH=str(ROOT / ".jupyter"))
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *flags],
        env=os.environ | here | dict(POSTTRAIN_STAGES=str(STAGES)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api", timeout=1)
                break
            time.sleep(0.5)
        yield address, folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab):
    """The lesson on reward models, opened, with all its cells run."""
    address, _ = lab
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.goto(f"{address}/lab/tree/work/reward.ipynb")
        page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=60_000)
        # What is run before the kernel is there may be forgotten
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        yield page
        browser.close()


def saved(folder, page):
    """The notebook on disk, once all its cells have run."""
    for _ in range(LONGEST // 3):
        time.sleep(3)
        dialog = page.locator(".jp-Dialog")
        assert dialog.count() == 0, dialog.first.inner_text()
        # Save when nothing runs: a second saving beside the first is a conflict
        if page.get_by_text("| Idle").count() == 0:
            continue
        page.keyboard.press("Control+s")
        page.get_by_text("Saving completed").wait_for(timeout=30_000)
        cells = json.loads((folder / "reward.ipynb").read_bytes())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        if all(cell["execution_count"] for cell in code):
            return code
    raise AssertionError("the lesson did not come to its end")


def test_a_lesson_runs_in_jupyterlab_and_its_chapter_stays_as_it_is(lab, page):
    _, folder = lab
    before = (ROOT / "book" / "reward.md").read_bytes()
    code = saved(folder, page)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [each for each in outputs if each["output_type"] == "error"]
    told = "".join(
        "".join(each["text"]) for each in outputs if each["output_type"] == "stream"
    )
    assert "yours is not written yet: bradley_terry_loss" in told
    assert (ROOT / "book" / "reward.md").read_bytes() == before


def test_text_is_shown_as_the_page_shows_it(page):
    # On a busy machine what runs may be there before what is read
    shown = (
        "text => document.querySelector('.jp-NotebookPanel').innerText.includes(text)"
    )
    for last in ("Your turn", "Change one thing"):
        page.wait_for_function(shown, arg=last, timeout=60_000)
    text = page.locator(".jp-NotebookPanel").inner_text()
    for left in ("{glue", "{term}", "{ref}", "{cite}", ":class:", "```{"):
        assert left not in text, left
    assert "Your turn" in text and "Change one thing" in text
    assert page.locator("details summary", has_text="An answer").count() > 0
