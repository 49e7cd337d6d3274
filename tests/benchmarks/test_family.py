"""The README's family table is that of the files as they are."""

from helpers import ALGORITHMS

from benchmarks import family


def test_the_table_in_the_readme_is_current():
    text = (family.ROOT / "README.md").read_text()
    stands = text.partition("<!-- family: begin -->\n")[2].partition("\n<!-- family: end -->")[0]
    assert stands == family.family(), "write it again: python -m benchmarks.family"


def test_every_parent_is_a_file_and_the_table_has_each_child_once():
    parents = {name: family.parent(family.ALGORITHMS / f"{name}.py") for name in ALGORITHMS}
    assert set(parents.values()) - {None} <= set(ALGORITHMS)
    assert sorted(family.in_order(parents, None)) == ALGORITHMS
    assert parents["double_dqn"] == "dqn" and parents["dqn"] is None


def test_lines_that_differ():
    assert family.differing(["a", "b", "c"], ["a", "x", "c", "d"]) == (1, 2)
    assert family.differing(["a"], ["a"]) == (0, 0)
    assert family.differing(["value = 1"], ["value = 12"]) == (1, 1)


def test_double_dqn_differs_in_the_target_alone():
    """Outside the docstring of the module."""
    old, new = family.code("dqn"), family.code("double_dqn")
    assert family.differing(old, new) == (2, 3)
