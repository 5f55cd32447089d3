"""README says nothing that a committed result does not say, and its commands exist."""

import json
import re
from pathlib import Path

import pytest

from dirotq.config import build_job, compose_config, each_job
from dirotq.lab.results import read_result
from dirotq.report.blocks import refreshed

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "experiments" / "results").rglob("*.json"))
RUNS = [path for path in RESULTS if path.parent.name.startswith("emoji-")]


def test_result_tables_are_made_from_the_committed_results() -> None:
    """What `dirotq-report --check` checks."""
    assert "<!-- results: begin -->" in TEXT
    assert refreshed(TEXT, ROOT) == TEXT


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RESULTS, ids=name_of)
def test_committed_numbers_name_command_and_commit(path: Path) -> None:
    content = json.loads(path.read_text())
    commit = content["env"]["git"] if "env" in content else content["git"]
    assert re.fullmatch(r"[0-9a-f]{7,40}", commit)
    assert content["command"]
    assert not re.search(r"(?<!\w)/(tmp|home|root)/", path.read_text())


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_committed_results_are_valid_and_say_where_they_come_from(path: Path) -> None:
    result = read_result(path)
    assert re.fullmatch(r"[0-9a-f]{7,40}", result["env"]["git"] or "")
    assert result["command"].startswith("dirotq")
    assert result["prompts"]["n"] == result["metrics"]["psnr"]["n"]


def test_dirotq_commands_of_the_readme_compose() -> None:
    lines = re.findall(r"^dirotq [^#\n]*", TEXT, flags=re.MULTILINE)
    parts = [part.split()[1:] for line in lines for part in line.split("&&")]
    commands = [words for words in parts if any("=" in word for word in words)]
    assert commands
    for command in commands:
        arguments = [word for word in command if not word.startswith("-")]
        single = [re.sub(r"=([^,]+),.*", r"=\1", word) for word in arguments]
        if not any("path/to" in word for word in single):
            build_job(compose_config(single))


def test_settings_in_report_commands_of_the_readme_compose() -> None:
    lines = re.findall(r"^dirotq-report ([^#\n]*)", TEXT, flags=re.MULTILINE)
    commands = [[word for word in line.split() if "=" in word] for line in lines]
    assert any(commands)
    for words in filter(None, commands):
        for overrides in each_job(words)[:1]:
            build_job(compose_config(overrides))


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)", TEXT, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture
