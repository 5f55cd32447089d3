"""Kill sweeps at random and see that nothing is lost: python -m experiments.kills --kills 100 --out FILE

Several processes run the same small sweep of a tiny random model in one folder, with one cache. Each is killed
(SIGKILL) at a random moment, or all of them at the moment a random stage is being built, and started again, until the
sweep is through. Then every file of its run directories must be that of an undisturbed sweep, times apart, and every
byte of the cache must be what its manifest says. Rounds follow with empty folders until there were so many kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

import dirotq_cli
from dirotq.atomic import atomic_write_json
from dirotq.lab import app  # noqa: F401 - what a child would import first, and a fork has
from dirotq.lab.cache import verify
from dirotq.lab.results import environment

STAGES = ("reference", "records", "statistics", "quantized", "images", "run directory")
TIMES = ("seconds", "bytes", "command", "sweep", "preflight")
"""Fields of result.json that differ between equal runs."""
_POLL_SECONDS = 0.002


class Child:
    """`dirotq` in a fork of this process, which saves it the seconds of importing torch and diffusers.

    folder: its working directory. prepare: what the child calls first.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.log = folder / f"{time.monotonic_ns()}.log"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self.status: int | None = None
        if not self.pid:
            _become(arguments, folder, self.log, prepare)

    def running(self) -> bool:
        """Whether it still runs; `status` is its exit status once it does not, negative for a signal."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def wait(self, seconds: float) -> int:
        """Its exit status; raises TimeoutError, and kills it, if it does not end in time."""
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"no end after {seconds} s: {self.output()}")
            time.sleep(_POLL_SECONDS)
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)

    def output(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.log.read_text()


def _become(arguments: Sequence[str], folder: Path, log: Path, prepare: Callable[[], None]) -> None:
    """Be the command in a forked process, which never returns."""
    status = 1
    try:
        os.setpgid(0, 0)  # what a launcher does to its group is not done to this process's parent
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.chdir(folder)
        sys.argv = ["dirotq", *arguments]
        # Forks would share the semaphore of tqdm, and a killed one may hold it; processes of their own have their own.
        tqdm.set_lock(threading.RLock())
        prepare()
        dirotq_cli.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@dataclass
class Count:
    """What happened. during: kills by the stage that was being built; "between" where none was."""

    kills: int = 0
    rounds: int = 0
    during: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Run the script; exit status 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork of a process with running OpenMP threads hangs
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        count, compared = experiment(
            Path(name),
            sweep(Path(name)),
            options.kills,
            options.processes,
            random.Random(options.seed),
        )
    arguments = (
        [*sys.argv[1:-1], options.out.name] if sys.argv[-2:-1] == ["--out"] else sys.argv[1:]
    )
    outcome = {
        "command": shlex.join(["python", "-m", "experiments.kills", *arguments]),
        "kills": count.kills,
        "rounds": count.rounds,
        "processes": options.processes,
        "killed_during": dict(sorted(count.during.items())),
        "compared": compared,
        "lost": 0,
        "seconds": round(time.perf_counter() - start),
        "weights": "random",
        "env": environment(),
    }
    atomic_write_json(options.out, outcome)
    sys.stdout.write(json.dumps(outcome, indent=2) + "\n")


def experiment(
    folder: Path,
    arguments: Sequence[str],
    kills: int,
    processes: int,
    random_choice: random.Random,
) -> tuple[Count, list[str]]:
    """Kill sweeps until there were so many kills; returns what happened and what was compared, by names of files.

    arguments: of a sweep whose cache is outputs/cache in the working directory.
    Raises AssertionError that says what was lost.
    """
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    start = time.perf_counter()
    child = Child(arguments, undisturbed)
    assert child.wait(300) == 0, child.output()
    length = time.perf_counter() - start
    expected = contents(undisturbed)
    count = Count()
    while count.kills < kills:
        work = folder / f"round-{count.rounds}"
        work.mkdir()
        one_round(work, arguments, processes, kills, length, random_choice, count)
        compare(expected, contents(work))
        verify_cache(work / "outputs" / "cache")
        shutil.rmtree(work)
        count.rounds += 1
        sys.stderr.write(f"{count.kills} kills in {count.rounds} rounds, nothing lost\n")
    return count, sorted({name.partition("/")[2] for name in expected})


def sweep(folder: Path) -> list[str]:
    """A sweep over four small jobs on a tiny random pipeline, written into `folder`."""
    from tests.support.jobs import overrides
    from tests.support.tiny import build_pipeline

    build_pipeline().save_pretrained(folder / "pipeline")
    return [
        "-m",
        *overrides(folder / "pipeline", folder, "runtime.cache=outputs/cache", "save=true"),
        "method=dirotq,rtn",
        "rounding=rtn,gptq",
        "rank=8",
    ]


def one_round(
    work: Path,
    arguments: Sequence[str],
    processes: int,
    kills: int,
    length: float,
    random_choice: random.Random,
    count: Count,
) -> None:
    """Run the sweep in `work` until one process gets through, killing them before that."""
    children: list[Child] = []
    dead: frozenset[Path] = frozenset()  # what was being built at the kills so far
    while True:
        while len(children) < processes:
            place = f"hydra.sweep.dir=sweeps/{count.kills}-{len(children)}"
            children.append(Child([*arguments, place], work))
        everyone = random_choice.random() < 0.5 and count.kills < kills
        stage = random_choice.choice(STAGES) if everyone else None
        # Where the stage was done before, it is not reached, and the sweep gets through.
        patience = 300 if stage else random_choice.random() * length
        deadline = time.monotonic() + patience
        while all(child.running() for child in children):
            reached = stage is not None and stage in stages(building(work) - dead)
            if count.kills < kills and (reached or time.monotonic() > deadline):
                break
            time.sleep(_POLL_SECONDS)
        ended = [child for child in children if not child.running()]
        assert all(child.status == 0 for child in ended), ended[0].output()
        if ended:
            for child in children:
                assert child.wait(300) == 0, child.output()
            return
        during = stages(building(work) - dead) or ["between"]
        victims = children if everyone else [random_choice.choice(children)]
        for victim in victims:
            victim.kill()
            count.kills += 1
            count.during[stage if stage in during and stage else during[0]] += 1
        children = [child for child in children if child not in victims]
        dead = building(work)


def building(work: Path) -> frozenset[Path]:
    """Entries and run directories that are being built, or were when their process was killed."""
    cached, runs = work.glob("outputs/cache/*/.*.tmp-*"), work.glob("outputs/runs/.*.tmp-*")
    return frozenset([*cached, *runs])


def stages(built: Iterable[Path]) -> list[str]:
    """The stages that what is being built belongs to."""
    names = (path.parent.name for path in built)
    return sorted({STAGES[-1] if name == "runs" else name for name in names})


def contents(work: Path) -> dict[str, bytes]:
    """Every file of the run directories by name, of result.json only what equal runs share."""
    found = {}
    runs = work / "outputs" / "runs"
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        name = path.relative_to(runs).as_posix()
        if path.name == "result.json":
            result = json.loads(path.read_bytes())
            kept = {key: value for key, value in result.items() if key not in TIMES}
            found[name] = json.dumps(kept, sort_keys=True).encode()
        else:
            found[name] = path.read_bytes()
    return found


def compare(expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    """Raise AssertionError that names a file that is missing, left over or of other bytes."""
    for name in sorted(expected.keys() | found.keys()):
        assert name in found, f"{name} is missing"
        assert name in expected, f"{name} was left over"
        assert found[name] == expected[name], f"{name} has other bytes"


def verify_cache(cache: Path) -> None:
    """Check every byte of every entry."""
    entries = [path for path in cache.glob("*/*/") if not path.name.startswith(".")]
    assert entries, f"{cache} is empty"
    for entry in entries:
        verify(entry)


if __name__ == "__main__":
    main()
