"""The demo: what its dialogue must show, and (slow) the whole way as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ecg_agent_ray.pipelines.demo.conversation import SCRIPT, Answer, Conversation, check

MEASURED = {
    "action": "call_measurement_tool",
    "tool": "measurement",
    "tool_output": {
        "heart_rate": "59.52",
        "pr_interval": "198",
        "qrs_duration": "96",
        "qtc_interval": "426.30",
    },
}
CLASSIFIED = {
    "action": "call_classification_tool",
    "tool": "classification",
    "tool_output": ["SBRAD (91.20%)"],
}


def conversation(**changed: str) -> Conversation:
    told = {
        "findings": "I found sinus bradycardia (91%).",
        "numbers": "Your heart rate is 60 bpm and your QRS duration is 96 ms.",
        "followup": "Your heart rate of 60 bpm is within the usual range of 60 to 100 bpm.",
        "scope": "I can't advise on medicines. Please ask your doctor.",
        "bye": "Goodbye, and take care!",
    } | changed
    actions = ("response", "response", "response_followup", "response_fail", "system_bye")
    steps: list[list[dict[str, Any]]] = [[CLASSIFIED], [MEASURED], [], [], []]
    answers = [
        Answer(user, text, action, called, {"repaired": 0, "dropped": 0}, 1.0)
        for user, text, action, called in zip(SCRIPT, told.values(), actions, steps, strict=True)
    ]
    return Conversation("id", answers)


def test_a_good_dialogue_passes_every_check() -> None:
    assert all(check(conversation()).values())


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": "Your heart rate is 80 bpm and your QRS duration is 96 ms."},
        {"numbers": "Your QRS duration is 96 ms."},
        {"followup": "Your heart rate of 75 bpm is fine."},
        {"findings": "I found atrial fibrillation (91%)."},
    ],
)
def test_a_number_that_is_not_the_tools_is_noticed(changed: dict[str, str]) -> None:
    assert not check(conversation(**changed))["numbers_are_the_tools"]


def test_a_missing_call_is_noticed() -> None:
    talk = conversation()
    talk.answers[1].steps.clear()
    result = check(talk)
    assert not result["measurement_called"]
    assert result["classification_called"]


def descendants_of(marker: str) -> list[psutil.Process]:
    """Processes started with ``marker`` in their environment, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ECG_AGENT_TEST_MARK") == marker:
                found.append(process)
        except psutil.Error:
            continue
    return found


def start_demo(tmp_path: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "ECG_AGENT_TEST_MARK": str(tmp_path),
        "ECG_AGENT_HOME": str(tmp_path / "state"),
    }
    return subprocess.Popen(
        [Path(sys.executable).with_name("ecg-agent"), "demo", "--output", tmp_path / "out"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_nothing_left(tmp_path: Path) -> None:
    deadline = time.monotonic() + 20
    while (left := descendants_of(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, [process.cmdline() for process in left]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_way_and_then_again(tmp_path: Path) -> None:
    for version in (1, 2):
        demo = start_demo(tmp_path)
        text, _ = demo.communicate(timeout=700)
        assert demo.returncode == 0, text
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert all(report["checks"].values())
        assert [turn["user"] for turn in report["transcript"]] == list(SCRIPT)
        assert report["models"]["ecg-agent"]["version"] == version
        assert Path(report["plot"]).stat().st_size > 10_000
        assert_nothing_left(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [4, 15, 40, 75])
def test_ctrl_c_leaves_no_process(tmp_path: Path, seconds: int) -> None:
    demo = start_demo(tmp_path)
    try:
        demo.communicate(timeout=seconds)
        pytest.skip("the demo was over before the signal")
    except subprocess.TimeoutExpired:
        # as a terminal does: the whole foreground process group gets it
        os.killpg(demo.pid, signal.SIGINT)
    text, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, text
    assert "Traceback" not in text
    assert_nothing_left(tmp_path)
