"""Text that pdfLaTeX takes, whatever is in it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dirotq.report.cells import Column, Marked, Number, Table
from dirotq.report.render import latex
from dirotq.report.tex import escaped

ASCII = "".join(map(chr, range(0x20, 0x7F)))
OTHERS = "±\u00d7·²≤≥≈≠→←↑↓\u2212ΔΣΛΩλμπéßŁ\u2013\u2019“…ðĄ中🦊\x07\N{GREEK CAPITAL LETTER ALPHA}"
TABLE = Table(
    columns=(Column("a", "| Δ [x] *"), Column("b", "PSNR ↑")),
    rows=(
        ("*", Number(-1.5, 2, -2, -1, 5, (ASCII, OTHERS), "not distinguishable", signed=True)),
        ("[", Marked("--", (OTHERS[::-1],))),
        (ASCII, None),
        (OTHERS, "\\"),
    ),
    notes=("50 % of & more_, ±1 #2 $3 ~4 ^5 {6}",),
    unfinished=(("0", r"weight_only=['.*ff\.net\.2']", "not run"),),
)
COMMANDS = {
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "texttt",
    "textsuperscript", "toprule", "midrule", "bottomrule", "begin", "end", "centering", "par", "smallskip",
    "footnotesize", "uparrow", "downarrow", "rightarrow", "leftarrow", "leq", "geq", "approx", "neq", "pm",
    "cdot", "times", "Delta", "Sigma", "Lambda", "Omega", "lambda", "mu", "pi",
}  # fmt: skip


def check(text: str) -> None:
    """Environments and groups pair, only known commands, nothing special bare, cells alike in number."""
    body = text.split("\n", 1)[1]  # a comment names the package
    open_: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert not open_
    assert set(re.findall(r"\\([A-Za-z]+)", body.replace("\\\\", ""))) <= COMMANDS
    plain = re.sub(r"\\(?:\\|[&%$#_{}])", "", body)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert not re.search("[%#_~]", plain)
    assert plain.count("$") % 2 == 0
    assert "^" not in re.sub(r"\$[^$]*\$", "", plain)
    rows = re.findall(r"^  (.*) \\\\$", body, flags=re.MULTILINE)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    assert not any(row.startswith(("*", "[")) for row in rows)


def test_a_table_of_every_character_is_sound() -> None:
    check(latex(TABLE))


def test_signs_are_written_and_not_dropped() -> None:
    assert escaped("± 50 %, a_b & c → d") == r"$\pm$ 50 \%, a\_b \& c $\rightarrow$ d"
    assert escaped("λ and \N{GREEK CAPITAL LETTER ALPHA}") == r"$\lambda$ and \texttt{U+0391}"
    assert escaped("中 --check") == r"\texttt{U+4E2D} -{}-check"
    assert "$-$1.50 {[}$-$2.00, $-$1.00{]} not distinguishable" in latex(TABLE)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_it_compiles(tmp_path: Path) -> None:
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"
    (tmp_path / "table.tex").write_text(document % latex(TABLE), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
