"""The page in headless Chromium, against `ecg-agent serve` with tokens and the shipped models.

Debian's `chromium` is looked for, or what CHROMIUM names; without it these tests are skipped.
SCREENSHOTS names a folder for what each test's tabs show at its end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.serving import TokenFile

ACTION_MS, TURN_MS = 120_000, 400_000
"""Longest waits for anything on the page and for an answer; a busy machine is slow, not wrong."""


@dataclass(frozen=True)
class Served:
    """A running service and a token for it."""

    url: str
    token: str
    pid: int

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    @contextlib.contextmanager
    def without(self, part: str) -> Iterator[None]:
        """Kill the part's replicas while the block runs, again and again as they are replaced."""
        over = threading.Event()
        name = f"ray::ServeReplica:ecg-agent:{part}"

        def kill() -> None:
            while not over.wait(0.2):
                for process in psutil.Process(self.pid).children(recursive=True):
                    # Ray names a worker after the actor that it runs
                    with contextlib.suppress(psutil.Error):
                        if process.name().startswith(name):
                            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join()


@pytest.fixture(scope="session")
def program() -> str:
    """Chromium's; without it or Playwright no service is started either."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium here (on Debian: apt-get install chromium)")
    return found


# a module at a time: while Playwright runs, no other test of the process can start an event loop
@pytest.fixture(scope="module")
def chromium(program: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # root, as in most containers, may not use Chromium's own sandbox
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


# once for this folder, whose end it does not outlive: it would share the machine with other tests
@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory, program: str) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    token = TokenFile(home / "tokens").create("reader", ["read", "chat"])
    environment = os.environ | {
        "ECG_AGENT_HOME": str(home),
        "ECG_AGENT_API_TOKENS": str(home / "tokens"),
    }
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "ecg_agent_ray.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield Served(_url_of(process), token, process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0]
    pytest.fail("`ecg-agent serve` ended before it served")


@dataclass(frozen=True)
class Tab:
    """A tab of the page, and what went wrong in it."""

    page: Any
    faults: list[str]

    def open_sample(self, record_id: str = "00003_hr") -> None:
        """Take a sample and wait until it is drawn, measured and classified."""
        self.page.click(f"[data-record='{record_id}']")
        self.page.wait_for_selector(".value[data-key=heart_rate_bpm]")
        self.page.wait_for_selector("#findings .findings li")
        self.page.locator(".paper-note").wait_for(state="hidden")

    def ask(self, text: str) -> Any:
        """Say something and wait for the end of the answer; gives its element."""
        turns = self.page.locator(".turn.agent").count()
        self.page.fill("#say", text)
        self.page.press("#say", "Enter")
        return self.answer(turns)

    def answer(self, number: int) -> Any:
        """The answer of that number, from 0, once it is whole or has failed."""
        turn = self.page.locator(".turn.agent").nth(number)
        turn.wait_for()
        self.page.locator(f".turn.agent:not([aria-busy]) >> nth={number}").wait_for(timeout=TURN_MS)
        return turn

    def pixels(self, colour: str) -> int:
        """How many pixels of the paper have about the colour of an ink, such as ``qrs``."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        return int(self.page.evaluate(_COUNT_PIXELS, colour))


_COUNT_PIXELS = """(name) => {
  const probe = document.createElement("span");
  probe.style.color = `var(--ink-${name})`;
  document.body.append(probe);
  const wanted = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
  probe.remove();
  const canvas = document.getElementById("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    if ([0, 1, 2].every((k) => Math.abs(data[i + k] - wanted[k]) < 40)) count += 1;
  }
  return count;
}"""


@pytest.fixture
def new_tab(
    chromium: Any, served: Served, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Tab]]:
    """Makes tabs. At the end none may have had a script error or a breach of the page's policy."""
    contexts, tabs = [], []

    def make(*, token: str | None = served.token, expected: str = "$^", **options: Any) -> Tab:
        """``expected`` is a pattern of console errors that the test provokes."""
        options.setdefault("viewport", {"width": 1280, "height": 820})
        context = chromium.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(ACTION_MS)
        page = context.new_page()
        faults: list[str] = []

        def note(message: Any) -> None:
            if message.type == "error" and not re.search(expected, message.text):
                faults.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((served.url, "data:"))
                or faults.append(f"left this host: {request.url}")
            ),
        )
        if token is not None:
            page.add_init_script(f"sessionStorage.setItem('ecg-agent-token', '{token}')")
        page.goto(served.url)
        tab = Tab(page, faults)
        tabs.append(tab)
        return tab

    yield make
    if folder := os.environ.get("SCREENSHOTS"):
        for number, tab in enumerate(tabs):
            tab.page.screenshot(path=Path(folder) / f"{request.node.name}-{number}.png")
    for context in contexts:
        context.close()
    assert [fault for tab in tabs for fault in tab.faults] == []


@pytest.fixture
def tab(new_tab: Callable[..., Tab]) -> Tab:
    """A desktop tab with a token."""
    return new_tab()


@pytest.fixture(scope="session")
def sample_files() -> list[Path]:
    header = ecg.samples()[0]
    return [header, header.with_suffix(".dat")]
