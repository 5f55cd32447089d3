"""Tables as text: aligned, escaped, in full precision, with footnotes that a legend explains."""

import csv
import io
import re

from dirotq.report.cells import Column, Marked, Number, Table
from dirotq.report.render import comma_separated, latex, markdown, terminal

TABLE = Table(
    columns=(Column("method", "method"), Column("psnr", "PSNR dB ↑"), Column("fid", "FID ↓")),
    rows=(
        ("dirotq, weight_only=a|b", Number(1 / 3, 2, 0.25, 0.4, 256), Marked("-", ("left out",))),
        ("50 % & more", Number(17.6, None, n=5000, marks=("source", "left out")), None),
    ),
    notes=("emoji, N = 256_prompts.",),
    unfinished=(("3", "rank=9999", "failed: too large"),),
)


def test_terminal_columns_are_aligned() -> None:
    lines = terminal(TABLE).splitlines()
    assert lines[0] == "method                           PSNR dB ↑  FID ↓"
    assert lines[2] == "dirotq, weight_only=a|b  0.33 [0.25, 0.40]  - (a)"
    assert lines[3] == "50 % & more                     17.6 (b,a)  -"
    assert lines[4:] == [
        "(a) left out",
        "(b) source",
        "emoji, N = 256_prompts.",
        "job 3 (rank=9999) failed: too large",
    ]


def test_markdown_escapes_its_columns() -> None:
    text = markdown(TABLE)
    rows = text.splitlines()[:4]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert rows[1] == "|---|---:|---|"
    assert "weight_only=a\\|b" in rows[2]
    assert "17.6 <sup>b,a</sup>" in rows[3]
    assert "\n\n<sup>b</sup> source\n" in text


def test_latex_is_a_booktabs_table() -> None:
    text = latex(TABLE)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    assert body.startswith(r"\begin{tabular}{lrl}")
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {2}
    assert r"50 \% \& more" in text
    assert r"PSNR dB $\uparrow$" in text
    assert r"256\_prompts" in text
    assert r"{[}0.25, 0.40{]}" in text
    assert r"17.6\textsuperscript{b,a}" in text
    # Braces pair, and nothing that TeX reads as a command is left bare.
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"(?<!\\)[%#_]", text.split("\n", 1)[1])


def test_csv_keeps_every_digit() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert float(rows[0]["psnr"]) == 1 / 3
    assert (rows[0]["psnr_low"], rows[0]["psnr_high"], rows[0]["psnr_n"]) == ("0.25", "0.4", "256")
    assert rows[1]["psnr_marks"] == "source; left out"
    assert (rows[0]["fid"], rows[0]["fid_marks"]) == ("", "left out")
    assert [row["status"] for row in rows] == ["finished", "finished", "failed: too large"]
    assert (rows[2]["method"], rows[2]["job"]) == ("rank=9999", "3")


def test_footnotes_beyond_the_alphabet() -> None:
    marks = tuple(f"mark {number}" for number in range(28))
    table = Table((Column("a", "a"),), ((Marked("x", marks),),))
    assert terminal(table).splitlines()[-1] == "(ab) mark 27"
