"""The lists of algorithms are those of the files, the data and the results as they are."""

import ast
import re

import pytest
from helpers import ALGORITHMS

from benchmarks import family

PLACED = [name for files in family.chapters().values() for name in files]
ENTRIES = {name: entry for files in family.chapters().values() for name, entry in files.items()}


@pytest.mark.parametrize(
    ("page", "render"),
    [("algorithms/README.md", family.family), ("README.md", family.excerpt)],
)
def test_the_tables_are_current(page, render):
    text = (family.ROOT / page).read_text()
    written = text.partition("<!-- family: begin -->\n")[2].partition("\n<!-- family: end -->")[0]
    assert written == render(), "write it again: python -m benchmarks.pages"


def test_every_file_is_in_one_chapter():
    assert sorted(PLACED) == ALGORITHMS, "place it in benchmarks/chapters.toml"


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_complete_and_cites_what_the_docstring_cites(name):
    entry = ENTRIES[name]
    assert {"new", "paper"} <= entry.keys() <= {"new", "paper", "excerpt"}
    assert 20 < len(entry["new"]) <= 110 and "\n" not in entry["new"]
    source = (family.ALGORITHMS / f"{name}.py").read_text()
    links = re.findall(r"\]\((.*?)\)", entry["paper"])
    assert links and all(link in ast.get_docstring(ast.parse(source)) for link in links)


def test_every_parent_is_a_file_that_comes_before():
    parents = {name: family.parent(family.ALGORITHMS / f"{name}.py") for name in ALGORITHMS}
    assert set(parents.values()) - {None} <= set(ALGORITHMS)
    assert parents["double_dqn"] == "dqn" and parents["dqn"] is None
    assert family.parent(family.ALGORITHMS / "sac.py") == "ddpg"
    for name, above in parents.items():
        assert above is None or PLACED.index(above) < PLACED.index(name), name


def test_the_excerpt_has_a_dozen_rows():
    assert 10 <= family.excerpt().count("\n") - 1 <= 14


def test_lines_that_differ():
    assert family.differing(["a", "b", "c"], ["a", "x", "c", "d"]) == (1, 2)
    assert family.differing(["a"], ["a"]) == (0, 0)
    assert family.differing(["value = 1"], ["value = 12"]) == (1, 1)


def test_the_share_of_lines_leaves_blank_ones_out():
    assert family.share(["a", "", "b"], ["a", "", "", "c"]) == 1 / 2
    assert family.share(["a", "b"], ["b", "a"]) == 1 / 2
    assert family.share(["a"], ["a"]) == 1


def test_a_parent_is_shown_only_where_most_lines_are_shared():
    for name in ALGORITHMS:
        above = family.parent(family.ALGORITHMS / f"{name}.py")
        shown = family.row(name, ENTRIES[name], "")[2]
        close = above and family.share(family.code(above), family.code(name)) > 0.55
        assert bool(shown) == bool(close)
    assert family.row("double_dqn", ENTRIES["double_dqn"], "")[2].endswith("-1 +2")


def test_double_dqn_differs_in_the_target_alone():
    """Outside the docstring of the module."""
    old, new = family.code("dqn"), family.code("double_dqn")
    assert family.differing(old, new) == (1, 2)
