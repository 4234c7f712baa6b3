"""What is said when something is wrong or missing; phone width, dark mode, keyboard, axe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

PROBLEM = "application/problem+json"
FAILED = "Failed to load resource"
TURN_MS = 400_000


def refuse(route: Any, status: int, detail: str, **headers: str) -> None:
    body = json.dumps({"title": "x", "status": status, "detail": detail})
    route.fulfill(status=status, body=body, content_type=PROBLEM, headers=headers)


def test_a_file_that_is_no_ecg(new_tab: Callable[..., Any]) -> None:
    page = new_tab(expected=FAILED).page
    page.wait_for_selector(".sample")
    page.set_input_files("#files", [{"name": "cat.bin", "mimeType": "x/y", "buffer": b"\0\1" * 99}])
    page.get_by_text("cat.bin was not opened. The content is no ECG format").wait_for()
    # the way on is still there
    page.click(".sample >> nth=0")
    page.wait_for_selector(".value[data-key=heart_rate_bpm]")


def test_a_header_without_its_signal_file(new_tab: Callable[..., Any], sample_files: Any) -> None:
    page = new_tab(expected=FAILED).page
    page.wait_for_selector(".sample")
    page.set_input_files("#files", sample_files[:1])
    page.get_by_text("00003_hr.hea was not opened.").wait_for()
    assert ".dat" in page.locator("[role=alert]:visible").first.inner_text()


def test_a_missing_classifier_leaves_the_rest(new_tab: Callable[..., Any]) -> None:
    page = (tab := new_tab(expected=FAILED)).page
    page.route("**/classification", lambda route: refuse(route, 503, "the classifier is away"))
    page.wait_for_selector(".sample")
    page.click("[data-record='00003_hr']")
    page.get_by_text("No findings. The classifier is away.").wait_for()
    page.wait_for_selector(".value[data-key=heart_rate_bpm]")
    assert tab.pixels("ink") > 2000
    page.unroute("**/classification")
    page.locator("#findings").get_by_role("button", name="Try again").click()
    page.wait_for_selector("#findings .findings li")


@pytest.mark.slow
def test_a_killed_classifier_is_said_and_comes_back(
    new_tab: Callable[..., Any], served: Any
) -> None:
    page = (tab := new_tab(expected=FAILED)).page
    page.wait_for_selector(".sample")
    with served.without("classification"):
        page.get_by_text("Without classification and explanation").wait_for(timeout=TURN_MS)
        page.click("[data-record='00003_hr']")
        page.wait_for_selector(".value[data-key=heart_rate_bpm]")
        assert tab.pixels("ink") > 2000
        page.locator("#findings").get_by_text("No findings.").wait_for(timeout=TURN_MS)
        page.locator("#status summary").click()
        page.locator("#status-parts .warn", has_text="Classification and explanation").wait_for()
    # the page sees by itself that the part is back
    page.wait_for_selector("#findings .findings li", timeout=TURN_MS)
    page.get_by_text("Ready", exact=True).wait_for()


def test_a_signal_that_does_not_load_can_be_tried_again(new_tab: Callable[..., Any]) -> None:
    page = (tab := new_tab(expected=FAILED)).page
    page.wait_for_selector(".sample")
    page.route("**/signal?*", lambda route: refuse(route, 503, "the store is away"))
    page.click("[data-record='00003_hr']")
    page.get_by_text("The signal did not load. The store is away.").wait_for()
    page.unroute("**/signal?*")
    page.locator("#paper").get_by_role("button", name="Try again").click()
    page.locator(".paper-note").wait_for(state="hidden")
    assert tab.pixels("ink") > 2000


def test_the_status_says_which_part_is_missing(new_tab: Callable[..., Any], served: Any) -> None:
    page = new_tab().page
    parts = {
        "agent": {"ready": False, "problem": "no model fits"},
        "measurement": {"ready": True, "problem": None},
        "classification": {"ready": True, "problem": None, "uri": "builtin:"},
    }
    body = json.dumps({"status": "degraded", "degraded": ["agent"], "parts": parts})
    page.route("**/readyz", lambda route: route.fulfill(body=body, content_type="application/json"))
    page.goto(served.url)
    page.get_by_text("Without agent").wait_for()
    assert "no model fits" in page.locator("#agent-missing").inner_text()
    page.locator("#status summary").click()
    assert "builtin:" in page.locator("#status-parts").inner_text()


def test_an_overloaded_agent_can_be_asked_again(new_tab: Callable[..., Any]) -> None:
    page = (tab := new_tab(expected=FAILED)).page
    tab.open_sample()
    full = {"Retry-After": "1"}
    page.route("**/v1/chat/completions", lambda route: refuse(route, 503, "all are busy", **full))
    turn = tab.ask("What is the heart rate?")
    assert "Not answered. All are busy." in turn.inner_text()
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Ask again", exact=True).click()
    page.locator(".turn.agent:not([aria-busy]) .words:not(:empty)").wait_for(timeout=400_000)
    assert page.locator(".turn.user").count() == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('data: {"choices": [{"delta": {"content": "The heart"}}]}\n\n', "broke off"),
        ('data: {"error": {"message": "it failed", "code": 500}}\n\ndata: [DONE]\n\n', "it failed"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off(tab: Any, body: str, words: str) -> None:
    tab.open_sample()
    reply = {"body": body, "content_type": "text/event-stream"}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(**reply))
    turn = tab.ask("What is the heart rate?")
    assert words in turn.locator("[role=alert]").inner_text()
    assert turn.get_by_role("button", name="Ask again").is_enabled()


def test_a_service_that_is_gone(new_tab: Callable[..., Any]) -> None:
    page = new_tab(expected=FAILED).page
    page.wait_for_selector(".sample")
    page.route("**/v1/**", lambda route: route.abort())
    page.click("[data-record='00003_hr']")
    page.get_by_text("The service cannot be reached.").wait_for()


def test_the_token_is_asked_for_and_kept_in_the_tab(
    new_tab: Callable[..., Any], served: Any
) -> None:
    page = new_tab(token=None, expected=FAILED).page
    page.get_by_role("heading", name="This service asks for a token").wait_for()
    page.fill("#token", "ecga_wrong")
    page.click("#token-use")
    page.get_by_text("The service does not know this token.").wait_for()
    page.fill("#token", served.token)
    page.click("#token-use")
    page.wait_for_selector(".sample")
    assert served.token not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    page.reload()
    page.wait_for_selector(".sample")


def test_a_phone(new_tab: Callable[..., Any]) -> None:
    tab = new_tab(viewport={"width": 375, "height": 740}, has_touch=True, device_scale_factor=2)
    page = tab.page

    def nothing_sticks_out() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375

    page.wait_for_selector(".sample")
    nothing_sticks_out()
    tab.open_sample()
    nothing_sticks_out()
    assert tab.pixels("ink") > 2000
    assert page.get_by_text("Not a medical device.").is_visible()
    page.get_by_role("button", name="Dialogue").click()
    assert not page.locator("#paper").is_visible()
    nothing_sticks_out()
    answer = tab.ask("What are the heart rate and QRS duration?")
    nothing_sticks_out()
    # a number brings the paper forward and shows its place
    answer.locator("a.number").first.tap()
    page.locator("#reading", has_text="median of").wait_for()
    assert page.locator("#paper").is_visible()
    assert tab.pixels("evidence") > 100


def test_dark_and_light(new_tab: Callable[..., Any]) -> None:
    tab = new_tab(color_scheme="dark")
    page = tab.page
    brightness = """() => {
      const canvas = document.getElementById("canvas");
      const paper = canvas.getContext("2d").getImageData(1, 1, 1, 1).data[0];
      return [Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]), paper];
    }"""
    tab.open_sample()
    tab.pixels("ink")
    assert max(page.evaluate(brightness)) < 80
    page.get_by_role("button", name="Colours: automatic").click()
    page.get_by_role("button", name="Colours: light").wait_for()
    tab.pixels("ink")
    assert min(page.evaluate(brightness)) > 200
    page.reload()
    page.wait_for_selector(".sample")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_all_by_keyboard(tab: Any) -> None:
    page = tab.page
    page.wait_for_selector(".sample")
    page.focus("[data-record='00003_hr']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".value[data-key=heart_rate_bpm]")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "paper":
            break
    assert page.evaluate("document.activeElement.id") == "paper"
    page.keyboard.press("m")
    assert tab.pixels("qrs") > 100
    page.keyboard.press("+")
    assert page.get_by_text("125 %").is_visible()
    page.keyboard.press("0")
    page.keyboard.press("c")
    page.keyboard.press("Enter")
    reading = page.locator("#reading")
    assert "800 ms · 75 bpm · 0.00 mV" in reading.inner_text()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert "820 ms · 73 bpm" in reading.inner_text()
    page.keyboard.press("Shift+ArrowUp")
    assert "0.10 mV" in reading.inner_text()
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    assert "818 ms" in reading.inner_text()
    page.keyboard.press("Escape")
    assert "drag over a trace" in reading.inner_text()
    page.keyboard.press("c")
    assert reading.inner_text() == ""
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "say"
    page.get_by_role("button", name="Keyboard and help").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("heading", name="Keyboard").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("heading", name="Keyboard").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_axe_finds(new_tab: Callable[..., Any], scheme: str) -> None:
    """WCAG rules of axe-core: names, roles, contrast, order of headings."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = new_tab(color_scheme=scheme)
    tab.page.wait_for_selector(".sample")
    tab.page.get_by_text("Ready", exact=True).wait_for()
    found = axe.run(tab.page)
    tab.open_sample("00351_hr")
    tab.page.click(".value[data-key=qrs_ms]")
    opened = axe.run(tab.page)
    for results in (found, opened):
        assert results.violations_count == 0, results.generate_report()
