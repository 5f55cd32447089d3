"""The HTML page stands alone, says everything, and lets nothing of a run act as markup."""

import re
from html.parser import HTMLParser

import pytest

from dirotq.report.images import image_grid
from dirotq.report.page import page
from dirotq.report.plots import drawn
from dirotq.report.runs import find_runs
from dirotq.report.tables import results_table
from tests.report.test_images import QUANTIZED, REFERENCE
from tests.report.test_plots import LAYERS, TRAJECTORY
from tests.support.finished import write_job, write_run

VOID = {"meta", "img", "br", "path", "use", "rect", "image"}
ERROR = "rank=9999: <script>alert(1)</script> & more"


class Reader(HTMLParser):
    """Checks that tags pair, and collects ids, references and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a sweep with a 16-bit job, two ranks, a failed job and one that runs."""
    root = tmp_path_factory.mktemp("page")
    files = {"layers.csv": LAYERS, "trajectory.csv": TRAJECTORY}
    estimate = {"seconds": 20.0, "memory_bytes": 500_000_000, "disk_bytes": 1_000_000}
    for number, rank in enumerate((8, 32)):
        run = root / "runs" / str(rank)
        size = {"weight": 4.0 + rank / 16, "activation": 4.5}
        write_run(run, 20.0 + rank, files=files, images=QUANTIZED, rank=rank, effective_bits=size,
                  preflight=estimate)  # fmt: skip
        write_job(root / "sweep", number, "finished", f"rank={rank}", run=str(run))
    write_run(root / "runs" / "16", images=REFERENCE, method="fp16", bits="w16a16")
    write_job(root / "sweep", 2, "finished", "method=fp16", run=str(root / "runs" / "16"))
    write_job(root / "sweep", 3, "failed", "rank=9999", error=ERROR)
    write_job(root / "sweep", 4, "running", "rank=64")
    runs = find_runs([root / "sweep"])
    plots, missing = drawn(runs, ["psnr"])
    return page(
        "ranks & <bases>", runs, {"Results": results_table(runs, spread=True)}, plots, image_grid(runs), missing
    )  # fmt: skip


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


def test_nothing_is_loaded_from_elsewhere(html: str, read: Reader) -> None:
    assert read.links
    assert all(link.startswith(("#", "data:")) for link in read.links)
    assert not re.search(r"url\((?!#)|@import|<link", html)


def test_ids_of_the_plots_do_not_collide(html: str, read: Reader) -> None:
    assert len(set(read.ids)) == len(read.ids)
    used = {link[1:] for link in read.links if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(read.ids)


def test_it_says_what_became_of_every_job(read: Reader) -> None:
    text = " ".join("".join(read.texts).split())
    assert "3 finished, 1 failed, 1 running" in text
    assert ERROR in text
    assert read.tags.count("script") == 1  # the error's is text
    assert "ranks & <bases>" in text
    assert "dirotq eval=standard" in text
    assert "0123456789ab" in text


def test_estimates_stand_beside_what_was_measured(html: str) -> None:
    row = re.search(r"<tr><td>0</td>.*?</tr>", html[html.index("How it was measured") :], re.DOTALL)
    assert row is not None
    numbers = re.findall(r'class="number"[^>]*>([^<]*)<', row[0])
    assert numbers == ["22.2", "20.0", "400", "500", "14.0"]


def test_cells_sort_by_their_full_value(html: str) -> None:
    table = html[html.index('<table class="sortable">') : html.index("</table>")]
    assert 'data-value="28.0"' in table
    assert table.count('<button type="button">') == table.count("<th ")


def test_plots_and_images_are_inside(html: str, read: Reader) -> None:
    assert (
        read.tags.count("svg") == 6
    )  # rank, pareto, methods, trajectory, and the layers of two runs
    assert read.tags.count("details") == 2
    assert html.count('<img alt="images of the runs') == 1
    assert "bits-psnr: not drawn" in html
