"""Two processes, started as `accelerate launch` starts them, draw the images of one job."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState

from dirotq.lab import drawing
from dirotq.lab.results import read_result
from dirotq.lab.team import Team
from experiments import kills
from experiments.kills import Child
from tests.support.jobs import overrides

SECONDS = 120
TEXTS = {
    "first": "a cat",
    "second": "two dogs",
    "third": "a house",
    "fourth": "a hat",
    "last": "it",
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


def member(index: int, port: int, notes: Sequence[Path]) -> Callable[[], None]:
    """In a child: what a launcher sets, a note of every part drawn, and patience until the other has drawn one too."""

    def prepare() -> None:
        PartialState._reset_state()
        os.environ.update(
            RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        original = drawing.Drawer.draw

        def draw(self: drawing.Drawer, prompts: list[object], *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
            images = original(self, prompts, *args, **kwargs)  # type: ignore[arg-type]
            with notes[index].open("a") as file:
                file.write(f"{self.stage}\n")
            if len(prompts) < len(TEXTS):  # not the latents, which one process draws alone
                wait_for(self.stage, notes[1 - index])
            return images

        drawing.Drawer.draw = draw  # type: ignore[method-assign]

    return prepare


def wait_for(stage: str, note: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not (note.exists() and stage in note.read_text().splitlines()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_draw_the_images_of_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "five.yaml"
    prompts.write_text("".join(f"{key}: {text}\n" for key, text in TEXTS.items()))
    arguments = overrides(
        tiny_pipeline, tmp_path, "method=rtn", f"eval.prompt_set={prompts}", "eval.batch=1",
        "runtime.device=auto", "runtime.threads=1", "runtime.cache=outputs/cache",
    )  # fmt: skip
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    child = Child(arguments, alone)
    assert child.wait(SECONDS) == 0, child.output()
    port, notes = free_port(), [tmp_path / "drawn-0", tmp_path / "drawn-1"]
    children = [Child(arguments, together, member(index, port, notes)) for index in range(2)]
    for one in children:
        assert one.wait(SECONDS) == 0, one.output()
    kills.compare(kills.contents(alone), kills.contents(together))
    kills.verify_cache(together / "outputs" / "cache")
    for stage in ("reference", "images"):
        assert all(stage in note.read_text().splitlines() for note in notes)
        parts = list((together / "outputs" / "cache" / f"{stage}-part").glob("*/manifest.json"))
        assert len(parts) == len(TEXTS)
    (result,) = together.glob("outputs/runs/*/result.json")
    assert read_result(result)["prompts"]["n"] == len(TEXTS)
    assert "tiny, rtn" in children[0].output()
    assert "tiny, rtn" not in children[1].output()


def test_parts_are_whole_batches() -> None:
    team = Team()
    assert (team.count, team.leads) == (1, True)
    assert team.parts(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    covered = [n for part in team.parts(100, 3) for n in range(100)[part]]
    assert covered == list(range(100))
    assert all(part.start % 3 == 0 for part in team.parts(100, 3))
    assert len(team.parts(100, 3)) <= 4
    assert team.own(team.parts(5, 2)) == team.parts(5, 2)
    assert team.device("auto") == "auto"
