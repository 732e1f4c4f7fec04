"""Frames: the latest wins, each answer names its own, and what was dropped is told so."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Gate, Got, Served, asked, photo, served, uri

from edge.server.frames import Cameras
from edge.server.limits import Limits


def frame(seed: int, **fields: Any) -> dict[str, Any]:
    return {"image": uri(photo(seed)), "question": "What is it?", "max_tokens": 4, **fields}


def test_a_frame_is_answered_as_a_chat_is(server: Served) -> None:
    got = server.post("/v1/frames", frame(1, camera="door", frame="a17"))
    chat = server.chat(asked("What is it?", photo(1)), max_tokens=4)
    assert got.json["answer"] == chat.json["choices"][0]["message"]["content"]
    assert (got.json["camera"], got.json["frame"], got.json["dropped"]) == ("door", "a17", False)
    assert got.json["usage"]["prompt_tokens"] == chat.json["usage"]["prompt_tokens"]


def test_frames_without_names_are_counted(server: Served) -> None:
    names = [server.post("/v1/frames", frame(1, camera="gate")).json["frame"] for _ in range(3)]
    assert names == ["1", "2", "3"]
    assert server.post("/v1/frames", frame(1, camera="yard")).json["frame"] == "1"


def test_the_latest_wins(served_bundle: Path) -> None:
    with served(served_bundle) as server, ThreadPoolExecutor(8) as pool:
        gate = Gate(server, "tiny")

        def post(name: int, camera: str = "door") -> Future[Got]:
            return pool.submit(server.post, "/v1/frames", frame(name, frame=str(name), camera=camera))

        first = post(1)
        server.wait(lambda: server.service.queue.held == 1 and server.service.queue.waiting == 0)
        server.wait(lambda: server.service.models["tiny"].session._open()._answers > 0)
        waits = []
        for name in (2, 3, 4):
            waits.append(post(name))
            server.wait(lambda: server.service.queue.waiting == 1)
            if len(waits) > 1:
                dropped = waits[-2].result(20).json
                assert (dropped["frame"], dropped["dropped"], dropped["answer"]) == (str(name - 1), True, None)
                assert dropped["replaced_by"] == str(name)
        other = post(9, camera="yard")
        server.wait(lambda: server.service.queue.waiting == 2)
        gate.open()
        found = [future.result(20).json for future in (first, waits[-1], other)]
        assert [(one["frame"], one["dropped"]) for one in found] == [("1", False), ("4", False), ("9", False)]
        assert server.service.queue.held == 0
        assert 'edge_frames_dropped_total{model="tiny"} 2' in server.get("/metrics").body.decode()
        for one, name in zip(found, (1, 4, 9), strict=True):
            alone = server.chat(asked("What is it?", photo(name)), max_tokens=4)
            assert one["answer"] == alone.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image": None}, "image"),
        ({"image": "cat.png"}, "image"),
        ({"question": None}, "question"),
        ({"question": 3}, "question"),
        ({"camera": ""}, "camera"),
        ({"camera": "x" * 129}, "camera"),
        ({"frame": 3}, "frame"),
        ({"stream": True}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_fields(server: Served, fields: dict[str, Any], param: str) -> None:
    got = server.post("/v1/frames", frame(1, **fields))
    assert (got.status, got.error["param"]) == (400, param)


def test_only_so_many_cameras_are_remembered() -> None:
    cameras = Cameras(Limits(cameras=2))
    assert [cameras.number(name) for name in "abacab"] == ["1", "1", "2", "1", "3", "1"]
