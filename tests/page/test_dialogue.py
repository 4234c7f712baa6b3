"""The dialogue: three streamed turns of the shipped model, tool steps, numbers as links."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest


def test_three_streamed_turns(tab: Any, served: Any) -> None:
    page = tab.page
    sent: list[dict[str, Any]] = []
    page.on(
        "request",
        lambda request: (
            request.url.endswith("/chat/completions") and sent.append(json.loads(request.post_data))
        ),
    )
    tab.open_sample("00286_hr")
    page.get_by_role("button", name="What are the heart rate and QRS duration?").click()
    # the tool's step is there while the answer is still being written
    page.wait_for_selector(".turn.agent[aria-busy] details.step[data-tool=measurement]")
    answer = tab.answer(0)
    with served.client() as client:
        measured = client.post(f"/v1/ecgs/{sent[0]['ecg_agent']['ecg_id']}/measurement").json()
    number = answer.locator("a.number[data-key=heart_rate_bpm]").first
    assert float(number.inner_text().split()[0]) == pytest.approx(
        measured["heart_rate_bpm"], abs=0.51
    )
    number.click()
    page.locator("#reading", has_text="median of").wait_for()
    assert f"lead {measured['lead']}" in page.locator("#reading").inner_text()
    assert tab.pixels("evidence") > 300

    step = answer.locator("details.step").first
    assert not step.locator("table").is_visible()
    step.locator("summary").first.click()
    assert f"{measured['qrs_ms']:.1f} ms" in step.locator("table").inner_text()
    step.get_by_text("What the model read").click()
    assert "heart_rate" in step.locator("pre").inner_text()

    assert tab.ask("What do you see in this ECG?").locator(".words").inner_text()
    assert tab.ask("Thank you, goodbye.").locator(".words").inner_text()
    assert page.locator(".turn.user").count() == page.locator(".turn.agent").count() == 3
    # the whole dialogue and its steps went along, so any replica can answer
    assert [len(body["messages"]) for body in sent] == [1, 3, 5]
    assert sent[1]["ecg_agent"]["steps"][0]["tool"] == "measurement"
    assert sent[0]["stream"] is True

    page.get_by_role("button", name="New").click()
    assert page.locator(".turn").count() == 0
    assert page.get_by_role("button", name="What do you see in this ECG?").is_visible()


def test_stop(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    page.fill("#say", "What do you see in this ECG?")
    page.click("#send")
    page.click("#stop")
    page.get_by_text("Stopped. This question is not part of the dialogue.").wait_for()
    assert page.locator("#send").is_visible()


def test_the_agent_sees_the_chosen_leads(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    page.get_by_label("What the agent sees").select_option("I")
    with page.expect_request("**/v1/chat/completions") as asked:
        answer = tab.ask("What are the heart rate and QRS duration?")
    assert json.loads(asked.value.post_data)["ecg_agent"]["lead_configuration"] == "I"
    assert answer.locator(".words").inner_text()


def sse(*chunks: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_only_what_a_tool_gave_becomes_a_link_and_text_stays_text(tab: Any, served: Any) -> None:
    """An answer made up by the test, so that each kind of number is in it."""
    page = tab.page
    ids: list[str] = []
    page.on("response", lambda r: "/v1/samples/" in r.url and ids.append(r.json()["id"]))
    tab.open_sample()
    with served.client() as client:
        measured = client.post(f"/v1/ecgs/{ids[0]}/measurement").json()
    event = {
        "type": "tool_output",
        "tool": "measurement",
        "action": "call_measurement_tool",
        "tool_output": {},
        "detail": measured,
        "ms": 5.0,
        "turn": 0,
        "reused": False,
    }
    rate, qrs = measured["heart_rate_bpm"], measured["qrs_ms"]
    answer = (
        f"The heart rate is {rate:.0f} bpm (usual 60-100 bpm), QRS {qrs / 1000:.3f} s. "
        f"The PR interval is 999 ms. Over 3 days <img src=x onerror=alert(1)> {qrs:.0f} ms QRS."
    )
    body = sse({"ecg_agent": {"event": event}, "choices": []}, said(answer)) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )
    turn = tab.ask("Tell me.")
    assert turn.locator(".words").inner_text() == answer
    assert turn.locator("img").count() == 0
    links = turn.locator("a.number")
    assert [links.nth(i).inner_text() for i in range(links.count())] == [
        f"{rate:.0f} bpm", f"{qrs / 1000:.3f} s", f"{qrs:.0f} ms"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("Heart rate 62 bpm.", [("62 bpm", "heart_rate_bpm")]),
        ("The rate is 61.7 beats per minute", [("61.7 beats per minute", "heart_rate_bpm")]),
        ("QTc of 431 ms and QT of 420 ms", [("431 ms", "qtc_bazett_ms"), ("420 ms", "qt_ms")]),
        ("PR is 160 and QRS is 90", [("160", "pr_ms"), ("90", "qrs_ms")]),
        ("QRS is 160 ms", []),
        ("between 60 and 100 bpm", []),
        ("sinus rhythm (93%)", [("93%", "SR")]),
        ("no block (12%)", []),
        ("at 6.78 to 7.04 s", [("6.78 to 7.04 s", "0")]),
        ("at about 7.0 to 7.5 s", []),
        ("It has 160 patients", []),
    ],
)
def test_which_numbers_are_linked(tab: Any, text: str, linked: list[tuple[str, str]]) -> None:
    sources = {
        "measurement": {"heart_rate_bpm": 61.73, "pr_ms": 160.2, "qrs_ms": 89.9, "qt_ms": 420.0,
                        "qtc_bazett_ms": 430.6, "qtc_fridericia_ms": 425.0, "rr_ms": 972.0},
        "classification": {"labels": {"SR": 0.9309, "NORM": 0.4, "AFIB": None}},
        "explanations": [{"label": "SR", "probability": 0.9309, "regions": [],
                          "cells": [{"start_s": 6.784, "end_s": 7.04}]}],
    }  # fmt: skip
    found = tab.page.evaluate(
        """async ([text, sources]) => {
          const { linkNumbers } = await import("/page/js/numbers.js");
          const nameOf = (code) => ({ SR: "sinus rhythm" })[code] ?? code;
          return linkNumbers(text, sources, nameOf).map((l) => [text.slice(l.start, l.end), l.key]);
        }""",
        [text, sources],
    )
    assert [tuple(link) for link in found] == linked


def test_where_a_value_is_measured(tab: Any) -> None:
    """The intervals, in seconds, that each value of a made-up measurement rests on."""
    beats = [
        {"p_onset": 10, "qrs_onset": 90, "r_peak": 110, "qrs_offset": 140, "t_offset": 300},
        {"p_onset": None, "qrs_onset": 590, "r_peak": 610, "qrs_offset": 650, "t_offset": 800},
    ]
    measurement = {"lead": "V5", "beats": beats, "heart_rate_bpm": 60.0, "pr_ms": 160.0,
                   "qrs_ms": 110.0, "qtc_bazett_ms": 420.0, "qt_ms": None}  # fmt: skip
    found = tab.page.evaluate(
        """async (measurement) => {
          const { quantity, whereMeasured } = await import("/page/js/quantities.js");
          const where = (key) => whereMeasured(quantity(key), measurement, 500);
          return ["heart_rate_bpm", "pr_ms", "qrs_ms", "qtc_bazett_ms", "qt_ms"].map(where);
        }""",
        measurement,
    )
    rate, pr, qrs, qtc, qt = found
    assert [(s["startS"], s["endS"]) for s in rate["spans"]] == [(0.22, 1.22)]
    assert [(s["startS"], s["endS"], s["main"]) for s in pr["spans"]] == [(0.02, 0.18, True)]
    assert [s["text"] for s in qrs["spans"]] == ["QRS 100 ms", "QRS 120 ms"]
    # the first beat has no beat before it, hence no corrected QT
    assert [(s["startS"], s["endS"]) for s in qtc["spans"]] == [(1.18, 1.6)]
    assert qt is None
    assert re.search(r"QRS duration 110 ms: median of 2 intervals in lead V5", qrs["words"])


def test_without_an_ecg_the_dialogue_goes_on(new_tab: Callable[..., Any]) -> None:
    tab = new_tab()
    tab.page.wait_for_selector(".sample")
    assert tab.ask("What does QTc mean?").locator(".words").inner_text()
