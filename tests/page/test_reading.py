"""Opening an ECG and reading it on the paper: upload, plot, waves, calipers, zoom, leads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from ecg_agent_ray import ecg


def test_empty_state(tab: Any) -> None:
    page = tab.page
    page.wait_for_selector(".sample")
    assert page.locator(".sample").count() == len(ecg.samples())
    assert "years" in page.locator(".sample").first.inner_text()
    assert page.get_by_text("Not a medical device.").is_visible()
    assert page.get_by_text("No ECG is open.").is_visible()
    assert not page.locator("#viewer").is_visible()


def test_upload_plot_values_and_delete(tab: Any, served: Any, sample_files: list[Path]) -> None:
    page = tab.page
    page.wait_for_selector(".sample")
    with page.expect_response(re.compile("/v1/ecgs$")) as posted:
        page.set_input_files("#files", sample_files)
    ecg_id = posted.value.json()["id"]
    page.wait_for_selector(".value[data-key=heart_rate_bpm]")
    assert page.locator("#ecg-title").inner_text() == "00003_hr"
    assert "12 leads · 500 Hz · 10 s" in page.locator("#facts").inner_text()
    assert "aVR" in page.locator("#canvas").get_attribute("aria-label")
    assert tab.pixels("ink") > 2000

    with served.client() as client:
        measured = client.post(f"/v1/ecgs/{ecg_id}/measurement").json()
        for key in ("heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qtc_bazett_ms"):
            shown = page.locator(f".value[data-key={key}] .value-number").inner_text()
            assert float(shown.split()[0]) == pytest.approx(measured[key], abs=0.51)
        page.click("#remove")
        page.get_by_text("Deleted from the service.").wait_for()
        assert client.get(f"/v1/ecgs/{ecg_id}").status_code == 404
    assert not page.locator("#viewer").is_visible()


def test_dropped_files_are_uploaded(tab: Any, sample_files: list[Path]) -> None:
    page = tab.page
    page.wait_for_selector(".sample")
    page.evaluate(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, bytes] of files) {
            transfer.items.add(new File([new Uint8Array(bytes)], name));
          }
          const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true });
          document.body.dispatchEvent(drop);
        }""",
        [[path.name, list(path.read_bytes())] for path in sample_files],
    )
    page.wait_for_selector(".value[data-key=heart_rate_bpm]")
    assert page.locator("#ecg-title").inner_text() == "00003_hr"


def test_the_paper_is_true_to_scale(tab: Any) -> None:
    """A 2 mV pulse at 1 s of a made-up lead stands 10 mm/mV high and 25 mm to the right."""
    found = tab.page.evaluate(
        """async () => {
          const { layOut } = await import("/page/js/paper/layout.js");
          const { drawStrips } = await import("/page/js/paper/trace.js");
          const rate = 500;
          const at = (lead, n) => (n >= 500 && n < 520 ? 2 : 0);
          const page = layOut({ leads: ["I"], durationS: 4, layout: "stack", startS: 0, mmPerS: 25,
            mmPerMv: 10, extent: () => ({ low: 0, high: 2 }) });
          const scale = 8;
          const [width, height] = [page.width * scale, page.height * scale];
          const context = new OffscreenCanvas(width, height).getContext("2d");
          drawStrips(context, {
            page,
            signal: { rate, at },
            ecg: { quality: {} },
            mmPerS: 25,
            mmPerMv: 10,
            ink: { ink: "#ff0000", faint: "#00ff00", paper: "#ffffff" },
            view: { x: 0, y: 0, scale, width, height },
          });
          const { data } = context.getImageData(0, 0, width, height);
          const red = [];
          for (let i = 0; i < width * height; i++) {
            const isRed = data[4 * i] > 200 && data[4 * i + 1] < 60;
            if (isRed) red.push([i % width, Math.floor(i / width)]);
          }
          const [strip] = page.strips;
          const top = Math.min(...red.map(([, y]) => y));
          const columns = red.filter(([, y]) => y < top + 4).map(([x]) => x);
          return { rise: strip.y - top / scale, from: Math.min(...columns) / scale - strip.x };
        }"""
    )
    assert found["rise"] == pytest.approx(20, abs=0.3)
    assert found["from"] == pytest.approx(25, abs=0.3)


def test_traces_never_meet(tab: Any) -> None:
    """One lead is far higher than the others; still every strip has its band to itself."""
    pages = tab.page.evaluate(
        """async () => {
          const { layOut, STANDARD } = await import("/page/js/paper/layout.js");
          const high = { low: -4, high: 3 };
          const extent = (lead) => (lead === "V2" ? high : { low: -0.3, high: 1 });
          const common = { leads: STANDARD, durationS: 10, startS: 0, mmPerS: 25, mmPerMv: 10 };
          return ["3x4", "6x2", "stack"].map((layout) => layOut({ ...common, layout, extent }));
        }"""
    )
    for page in pages:
        strips = page["strips"]
        assert {strip["lead"] for strip in strips} == set(ecg.STANDARD_LEADS)
        for upper in strips:
            assert 0 < upper["top"] < upper["bottom"] <= page["height"]
            end = upper["x"] + 25 * (upper["endS"] - upper["startS"])
            for lower in strips:
                same_time = upper["x"] <= lower["x"] < end
                if same_time and lower["y"] > upper["y"]:
                    assert lower["top"] >= upper["bottom"]


def test_measured_waves_are_marked(tab: Any) -> None:
    tab.open_sample()
    assert tab.pixels("qrs") < 50
    tab.page.get_by_label("Show the measured waves (M)").click()
    for wave in ("p", "qrs", "t"):
        assert tab.pixels(wave) > 100
    assert "measured in lead" in tab.page.locator("#legend").inner_text()


def test_a_value_shows_where_it_was_measured(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    page.click(".value[data-key=qt_ms]")
    page.locator("#reading", has_text="median of").wait_for()
    said = page.locator("#reading").inner_text()
    value, lead, shown = re.search(
        r"QT interval (\d+) ms: median of \d+ intervals in lead (\w+).* is (\d+) ms", said
    ).groups()
    assert abs(int(value) - int(shown)) < 30
    assert lead in page.locator("#values").inner_text()
    assert tab.pixels("evidence") > 300
    page.get_by_role("button", name="Clear").click()
    assert tab.pixels("evidence") < 50


def test_other_leads_are_measured(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    page.select_option("[aria-label='Lead to measure']", "V5")
    page.get_by_text(re.compile(r"Lead V5, \d+ beats")).wait_for()
    page.select_option("[aria-label='Lead to measure']", "global")
    page.get_by_text(re.compile(r"All usable leads, \d+ beats")).wait_for()


def test_a_finding_shows_where_it_comes_from(tab: Any) -> None:
    page = tab.page
    tab.open_sample("00286_hr")
    page.locator("#findings .findings button").first.click()
    page.locator("#legend").get_by_text("why sinus rhythm").wait_for()
    assert tab.pixels("region") > 20
    assert page.get_by_label("Layout").input_value() == "stack"
    page.get_by_role("button", name="Clear").click()
    assert page.get_by_label("Layout").input_value() == "3x4"


def test_calipers_with_the_mouse(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    page.get_by_label("Calipers (C)").click()
    box = page.locator("#paper").bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"]

    def drag(x0: float, x1: float) -> tuple[int, int, float]:
        page.mouse.move(x0, y)
        page.mouse.down()
        page.mouse.move(x1, y - 10, steps=4)
        page.mouse.up()
        said = page.locator("#reading").inner_text()
        ms, bpm, mv = re.search(r"(\d+) ms · (\d+) bpm · (-?[\d.]+) mV", said).groups()
        return int(ms), int(bpm), float(mv)

    ms, bpm, mv = drag(x - 120, x)
    assert "lead II:" in page.locator("#reading").inner_text()
    assert bpm == pytest.approx(60_000 / ms, abs=1)
    assert mv > 0
    assert tab.pixels("calipers") > 100
    once = page.locator("#canvas").screenshot()
    page.get_by_label("Repeat the interval along the strip (R)").click()
    tab.pixels("calipers")
    assert page.locator("#canvas").screenshot() != once
    # the right edge is taken hold of and moved
    longer, _, _ = drag(x, x + 60)
    assert longer == pytest.approx(1.5 * ms, rel=0.03)
    # the same distance is half the time where the paper is twice as large
    page.focus("#paper")
    page.keyboard.press("Escape")
    assert "drag over a trace" in page.locator("#reading").inner_text()
    for _ in range(3):
        page.keyboard.press("+")
    closer, _, _ = drag(x - 120, x)
    assert closer == pytest.approx(ms / 1.25**3, rel=0.05)


def test_zoom_pan_and_fit(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    before = page.locator("#canvas").screenshot()
    page.get_by_label("Larger (+)").click()
    page.get_by_label("Larger (+)").click()
    assert page.get_by_text("156 %").is_visible()
    box = page.locator("#paper").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 100, middle[1] - 30, steps=3)
    page.mouse.up()
    assert tab.pixels("ink") > 500
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    assert not page.get_by_text("156 %").is_visible()
    page.get_by_label("Fit the paper (0)").click()
    assert page.get_by_text("100 %", exact=True).is_visible()
    page.locator("#values-title").hover()
    tab.pixels("ink")
    assert page.locator("#canvas").screenshot() == before


def test_two_fingers_zoom_about_their_middle(new_tab: Callable[..., Any]) -> None:
    tab = new_tab(viewport={"width": 375, "height": 740}, has_touch=True, device_scale_factor=2)
    page = tab.page
    tab.open_sample()
    box = page.locator("#paper").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    hand = page.context.new_cdp_session(page)

    def touch(kind: str, *apart: float) -> None:
        points = [{"x": x + dx, "y": y, "id": number} for number, dx in enumerate(apart)]
        hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def zoom() -> int:
        return int(re.search(r"(\d+) %", page.locator("#toolbar").inner_text())[1])

    def pinch(before: float, after: float) -> None:
        touch("touchStart", -before)
        touch("touchStart", -before, before)
        for step in (0.25, 0.5, 0.75, 1):
            now = before + (after - before) * step
            touch("touchMove", -now, now)
        touch("touchEnd")

    before = zoom()
    pinch(40, 80)
    assert zoom() == pytest.approx(2 * before, rel=0.03)
    assert page.evaluate("window.visualViewport.scale") == 1
    assert tab.pixels("ink") > 500
    pinch(80, 40)
    assert zoom() == pytest.approx(before, rel=0.03)


def test_leads_layout_and_scale(tab: Any) -> None:
    page = tab.page
    tab.open_sample()
    page.get_by_text("Leads", exact=True).click()
    page.get_by_role("button", name="Chest").click()
    assert page.get_by_text("Leads: 6 of 12").is_visible()
    assert page.get_by_label("Layout").is_disabled()
    page.get_by_label("V1", exact=True).uncheck()
    assert page.get_by_text("Leads: 5 of 12").is_visible()
    page.get_by_role("button", name="All", exact=True).click()
    page.keyboard.press("Escape")
    few = tab.pixels("ink")
    page.get_by_label("Gain").select_option("20")
    assert tab.pixels("ink") != few
    page.get_by_label("Layout").select_option("6x2")
    page.get_by_label("Paper speed").select_option("50")
    assert tab.pixels("ink") > 1000


def test_a_long_recording_is_fetched_as_it_is_seen(
    new_tab: Callable[..., Any], tmp_path: Path
) -> None:
    """Seventy seconds of one lead: what is past thirty seconds comes when it is looked at."""
    recording = ecg.sample(3)
    lead = np.tile(recording.lead("II")[:4900], 7)[:, None].astype(float)
    wfdb.wrsamp(
        "long",
        fs=500,
        units=["mV"],
        sig_name=["II"],
        p_signal=lead,
        fmt=["16"],
        write_dir=str(tmp_path),
    )
    page = (tab := new_tab()).page
    asked: list[str] = []
    page.on("request", lambda request: "/signal?" in request.url and asked.append(request.url))
    page.wait_for_selector(".sample")
    page.set_input_files("#files", [tmp_path / "long.hea", tmp_path / "long.dat"])
    page.wait_for_selector(".value[data-key=heart_rate_bpm]")
    assert "lead II · 500 Hz · 68.6 s" in page.locator("#facts").inner_text()
    assert [url.split("?")[1] for url in asked] == ["start=0&end=30"]
    for _ in range(5):
        page.get_by_label("Ten seconds on (Page Down)").click()
    page.locator(".paper-note").wait_for(state="hidden")
    assert any("start=30" in url for url in asked)
    assert tab.pixels("ink") > 200
