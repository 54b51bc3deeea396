"""Tables in three forms."""

from __future__ import annotations

from utils import format_table

TABLE = [["name", "value_%"], ["a", "1.00"], ["longer", "12.00"], ["<b>", "-"], ["mean", ""]]


def test_tables_line_up() -> None:
    lines = format_table(TABLE).splitlines()
    assert lines[0].split() == TABLE[0] and set(lines[1]) == {"-", " "}
    assert [line.split() for line in lines[2:]] == [[cell for cell in row if cell] for row in TABLE[1:]]
    assert lines[2].startswith("a  ") and len({len(line) for line in lines[:5]}) == 1, "the right ends line up"
    assert not any(line.endswith(" ") for line in lines)
    assert format_table([["only", "a heading"]]).splitlines()[0].split() == ["only", "a", "heading"]


def test_numbers_stay_as_they_are_written() -> None:
    for style in ("text", "markdown", "latex"):
        text = format_table([["a", "b"], ["1.0", "1e5"], ["007", "12.300"]], style)  # type: ignore[arg-type]
        assert all(word in text for word in ("1.0", "1e5", "007", "12.300"))


def test_markdown_and_latex() -> None:
    markdown = format_table(TABLE, "markdown").splitlines()
    rule = [cell.strip() for cell in markdown[1].strip("|").split("|")]
    assert rule[0].startswith(":-") and rule[1].startswith("-") and rule[1].endswith(":")
    assert all(line.count("|") == 3 for line in markdown)
    assert "&lt;b>" in format_table(TABLE, "markdown")
    assert r"a\|b" in format_table([["x"], ["a|b"]], "markdown")
    latex = format_table(TABLE, "latex")
    assert all(word in latex for word in (r"\begin{tabular}{lr}", r"\toprule", r"\midrule", r"value\_\%"))
