"""Upload, description, signal, plot, tools, deletion: over real HTTP, equal to the functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest

from ecg_agent_ray import ecg, tools


def parts(header: Path) -> list[tuple[str, tuple[str, bytes]]]:
    paths = (header, header.with_suffix(".dat"))
    return [("files", (path.name, path.read_bytes())) for path in paths]


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail"} <= body.keys()
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_upload_describes_the_recording(service: Any, sample_path: Path) -> None:
    recording = ecg.read(sample_path)
    with service.client() as client:
        answer = client.post("/v1/ecgs", files=parts(sample_path))
        assert answer.status_code == 201
        body = answer.json()
        assert client.get(f"/v1/ecgs/{body['id']}").json() == body
    assert body["format"] == recording.format
    assert body["leads"] == list(recording.leads)
    assert body["sampling_rate"] == recording.sampling_rate
    assert body["duration_s"] == pytest.approx(recording.duration_s)
    assert body["record_id"] == recording.record_id
    expected = {
        lead: {"status": q.status, "reason": q.reason}
        for lead, q in ecg.assess_quality(recording).items()
    }
    assert body["quality"] == as_json(expected)


@pytest.mark.parametrize(
    "options", [{}, {"lead": "V2"}, {"beats": True}, {"method": "neurokit"}, {"lead": "global"}]
)
def test_measurement_equals_the_function(
    service: Any, ecg_id: str, sample_path: Path, options: dict[str, Any]
) -> None:
    with service.client() as client:
        answer = client.post(f"/v1/ecgs/{ecg_id}/measurement", json=options)
    assert answer.status_code == 200, answer.text
    assert answer.json() == as_json(tools.measure(ecg.read(sample_path), **options).to_dict())


def test_tools_need_no_body(service: Any, ecg_id: str, sample_path: Path) -> None:
    with service.client() as client:
        measured = client.post(f"/v1/ecgs/{ecg_id}/measurement")
    assert measured.json() == as_json(tools.measure(ecg.read(sample_path)).to_dict())


def without_model(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "model"}


@pytest.mark.parametrize("leads", ["12-lead", "I", "II"])
def test_classification_equals_the_function(
    service: Any, ecg_id: str, sample_path: Path, leads: str
) -> None:
    with service.client() as client:
        answer = client.post(f"/v1/ecgs/{ecg_id}/classification", json={"leads": leads})
    assert answer.status_code == 200, answer.text
    expected = as_json(tools.classify(ecg.read(sample_path), leads=leads).to_dict())
    got = answer.json()
    assert got["labels"].keys() == expected["labels"].keys()
    for label, probability in expected["labels"].items():
        assert got["labels"][label] == pytest.approx(probability, abs=1e-4)
    assert got["positive"] == expected["positive"]
    assert got["lead_configuration"] == leads


def test_explanation_equals_the_function(service: Any, ecg_id: str, sample_path: Path) -> None:
    recording = ecg.read(sample_path)
    found = tools.classify(recording).to_dict()["labels"]
    label = max((p, name) for name, p in found.items() if p is not None)[1]
    with service.client() as client:
        answer = client.post(f"/v1/ecgs/{ecg_id}/explanation", json={"label": label})
    assert answer.status_code == 200, answer.text
    expected = as_json(tools.explain(recording, label).to_dict())
    assert answer.json()["regions"] == expected["regions"]
    assert answer.json()["text"] == expected["text"]


def test_signal_is_what_was_uploaded(service: Any, ecg_id: str, sample_path: Path) -> None:
    recording = ecg.read(sample_path)
    with service.client() as client:
        answer = client.get(
            f"/v1/ecgs/{ecg_id}/signal", params={"leads": "II,v1", "start": 1.0, "end": 2.5}
        ).json()
    assert list(answer["signal"]) == ["II", "V1"]
    assert (answer["start"], answer["end"], answer["unit"]) == (1.0, 2.5, "mV")
    first, last = (int(s * recording.sampling_rate) for s in (1.0, 2.5))
    np.testing.assert_allclose(
        answer["signal"]["II"], recording.lead("II")[first:last], atol=5.1e-5
    )


def test_plot_is_svg(service: Any, ecg_id: str) -> None:
    with service.client() as client:
        plain = client.get(f"/v1/ecgs/{ecg_id}/plot.svg")
        marked = client.get(f"/v1/ecgs/{ecg_id}/plot.svg", params={"marks": True})
    assert plain.headers["content-type"] == "image/svg+xml"
    assert ElementTree.fromstring(plain.content).tag.endswith("svg")
    assert marked.content != plain.content


def test_delete_leaves_nothing(service: Any, sample_path: Path) -> None:
    with service.client() as client:
        new = client.post("/v1/ecgs", files=parts(sample_path)).json()["id"]
        assert (service.store / new).is_dir()
        assert client.delete(f"/v1/ecgs/{new}").status_code == 204
        problem_of(client.get(f"/v1/ecgs/{new}"), 404)
        problem_of(client.delete(f"/v1/ecgs/{new}"), 404)
        problem_of(client.post(f"/v1/ecgs/{new}/measurement"), 404)
    assert not (service.store / new).exists()


def test_sample_records_can_be_taken(service: Any) -> None:
    with service.client() as client:
        names = [row["record_id"] for row in client.get("/v1/samples").json()["data"]]
        assert names == [path.stem for path in ecg.samples()]
        body = client.post(f"/v1/samples/{names[1]}").json()
        assert body["record_id"] == names[1]
        problem_of(client.post("/v1/samples/nobody"), 404)


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ([("files", ("x.bin", b"\x00\x01nothing we know" * 40))], 415),
        ([("files", ("a.edf", b"0" * 10)), ("files", ("b.edf", b"1"))], 422),
        ([("files", ("a.edf", b"x")), ("files", ("../a.edf", b"y"))], 422),
        ([("other", ("a.edf", b"x"))], 422),
    ],
)
def test_bad_uploads_are_problems(service: Any, files: list[Any], status: int) -> None:
    with service.client() as client:
        problem_of(client.post("/v1/ecgs", files=files), status)


def test_uploads_must_be_multipart(service: Any) -> None:
    with service.client() as client:
        problem_of(client.post("/v1/ecgs", content=b"raw", headers={"content-type": "x/y"}), 415)
        broken = {"content-type": "multipart/form-data; boundary=b"}
        problem_of(client.post("/v1/ecgs", content=b"--c\r\nno", headers=broken), 400)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..", "sub/x.dat"])
def test_a_header_cannot_name_files_elsewhere(service: Any, sample_path: Path, name: str) -> None:
    header = sample_path.read_text().replace(f"{sample_path.stem}.dat", name)
    files = [
        ("files", (sample_path.name, header.encode())),
        ("files", ("x.dat", sample_path.with_suffix(".dat").read_bytes())),
    ]
    with service.client() as client:
        body = problem_of(client.post("/v1/ecgs", files=files), 422)
    assert "root:" not in body["detail"]


def test_client_names_never_become_paths(service: Any, sample_path: Path, tmp_path: Path) -> None:
    """A traversal in the part's own name stays a name: the pair is still read as one record."""
    stem, target = sample_path.stem, tmp_path / "owned"
    files = [
        ("files", (f"../../../../{target}/{stem}.hea", sample_path.read_bytes())),
        ("files", (f"..\\..\\{stem}.dat", sample_path.with_suffix(".dat").read_bytes())),
    ]
    with service.client() as client:
        body = client.post("/v1/ecgs", files=files)
    assert body.status_code == 201, body.text
    assert body.json()["record_id"] == stem
    assert not target.exists()


@pytest.mark.parametrize(
    "ecg_id", ["..", "%2e%2e", "..%2f..%2fetc", "ecg_" + "0" * 32, "ecg_" + "Z" * 32, "a" * 5000]
)
def test_strange_ids_are_not_found(service: Any, ecg_id: str) -> None:
    with service.client() as client:
        assert client.get(f"/v1/ecgs/{ecg_id}/signal").status_code == 404


def test_limits(service: Any, ecg_id: str) -> None:
    long = ecg.Recording(
        signal=np.zeros((1, 100 * 100), dtype=np.float32), sampling_rate=100.0, leads=("I",)
    )
    header = "long 1 100 10000\nlong.dat 16 1000/mV 16 0 0 0 0 I\n"
    data = (long.signal[0] * 1000).astype("<i2").tobytes()
    with service.client() as client:
        too_long = [("files", ("long.hea", header.encode())), ("files", ("long.dat", data))]
        assert "seconds" in problem_of(client.post("/v1/ecgs", files=too_long), 422)["detail"]
        too_large = [("files", ("big.edf", b"0" * 2_100_000))]
        problem_of(client.post("/v1/ecgs", files=too_large), 413)

        def chunks() -> Any:
            for _ in range(40):
                yield b" " * 65536

        streamed = client.post(
            f"/v1/ecgs/{ecg_id}/measurement",
            content=chunks(),
            headers={"content-type": "application/json"},
        )
        problem_of(streamed, 413)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("measurement", {"lead": "V9"}, 422),
        ("measurement", {"method": "magic"}, 422),
        ("measurement", {"unknown": 1}, 422),
        ("classification", {"threshold": 2}, 422),
        ("classification", {"leads": "V1"}, 422),
        ("explanation", {}, 422),
        ("explanation", {"label": "NOSUCH"}, 422),
        ("nothing", {}, 404),
    ],
)
def test_bad_options_are_problems(
    service: Any, ecg_id: str, path: str, body: dict[str, Any], status: int
) -> None:
    with service.client() as client:
        problem_of(client.post(f"/v1/ecgs/{ecg_id}/{path}", json=body), status)


def test_malformed_json_is_a_400(service: Any, ecg_id: str) -> None:
    headers = {"content-type": "application/json"}
    with service.client() as client:
        broken = client.post(f"/v1/ecgs/{ecg_id}/measurement", content=b"{", headers=headers)
        problem_of(broken, 400)
        signal = client.get(f"/v1/ecgs/{ecg_id}/signal", params={"start": 5, "end": 4})
        problem_of(signal, 422)
        problem_of(client.get(f"/v1/ecgs/{ecg_id}/signal", params={"leads": "Q7"}), 422)
