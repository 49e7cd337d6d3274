"""The pages of the algorithms are those of the files, the data and the results as they are."""

import ast
import csv
import re

import pytest
from helpers import ALGORITHMS

from benchmarks import pages
from benchmarks.learning import RESULTS, ROOT, lines, suite

WRITE = "write it again: python -m benchmarks.pages"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_page_is_current(name):
    path = pages.PAGES / f"{name}.md"
    assert path.exists() and path.read_text() == pages.page(name), WRITE


def test_there_are_no_other_pages():
    assert sorted(path.stem for path in pages.PAGES.iterdir()) == ALGORITHMS, WRITE


@pytest.mark.parametrize(
    ("page", "name", "render"),
    [("README.md", "pages", pages.index), ("speed.md", "speed", pages.speed_headline)],
)
def test_the_table_of_a_page_is_current(page, name, render):
    text = (ROOT / "benchmarks" / page).read_text()
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    assert text.partition(begin)[2].partition(end)[0] == render(), WRITE


def test_every_row_of_the_suite_is_on_its_page():
    for name, row in suite().items():
        text = (pages.PAGES / f"{row['algorithm']}.md").read_text()
        assert row["source"] in text and row["tuned_seeds"] in text, name
        assert row.get("note", "") in text, name
        if name in lines():
            assert f"\n### {name}\n" in text
            assert f"![{name}](../results/{name}.png)" in text


def test_a_band_shows_the_range_of_the_seeds_and_a_threshold_the_worst():
    rows = {name: suite()[name] for name in ("differentiable-mpc-dynamics", "dqn-cartpole")}
    shown = {
        cells[1].partition("]")[0].strip(" ["): cells[4].strip()
        for cells in (line.split("|") for line in pages.results(rows).splitlines()[2:])
    }
    line = lines()["differentiable-mpc-dynamics"]
    assert shown["differentiable-mpc-dynamics"] == f"{line['min']} to {line['max']}"
    assert shown["dqn-cartpole"] == lines()["dqn-cartpole"]["min"]


def test_every_section_of_the_data_is_complete():
    required = {"pages", "title"}
    tables = [set(), {"head", "rows"}, {"csv", "columns"}, {"csv", "columns", "by"}]
    for section in pages.sections():
        extra = section.keys() - required - {"text", "command", "pictures"}
        assert required <= section.keys() and extra in tables, section["title"]
        assert section["pages"] and set(section["pages"]) <= set(ALGORITHMS)
        for row in section.get("rows", []):
            assert len(row) == len(section["head"]), (section["title"], row)
        for picture in section.get("pictures", []):
            assert (RESULTS / picture).exists(), picture
        if "csv" in section:
            with open(RESULTS / section["csv"], newline="") as file:
                head = csv.DictReader(file).fieldnames
            assert set(section["columns"]) | {section.get("by", head[0])} <= set(head)
            assert all(pages.rows_of_csv(section, name) for name in section["pages"])


def test_titles_of_a_page_differ():
    """Each is an anchor."""
    for name in ALGORITHMS:
        titles = re.findall(r"(?m)^#+ (.+)$", pages.page(name))
        assert len(titles) == len(set(titles)), name


def test_metrics_are_read_from_the_last_paragraph():
    docstring = "Title.\n\nA; `x`.\n\nMetrics: `value`, mean V,\nwith |x|; `loss`, [a; b](c)."
    with pytest.raises(TypeError):
        pages.explained(docstring)  # a clause that names no metric
    docstring = docstring.replace("[a; b](c)", "error (return²)")
    assert pages.explained(docstring) == {"value": "mean V, with |x|", "loss": "error (return²)"}
    assert pages.explained("Title.") == {}


def test_metrics_of_episodes_are_common_unless_the_file_explains_them():
    common = pages.episode_explained()
    assert list(common) == ["episode_return", "episode_length", "episodes"]
    every = pages.all_explained("Metrics: `value`, V; `episodes`, those that count.")
    assert every == common | {"value": "V", "episodes": "those that count"}
    assert pages.all_explained("Metrics: `episode_return`, NaN.") == {"episode_return": "NaN"}


PROSE = ["README.md", "algorithms/README.md", ".github/CONTRIBUTING.md"]
PROSE = [*(ROOT / path for path in PROSE), *sorted((ROOT / "benchmarks").glob("**/*.md"))]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """To files, and to titles of pages."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text):
    """As GitHub writes them."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_page_says_how_long_file_and_copy_are():
    text = pages.introduction("double_dqn")
    source = (ROOT / "algorithms" / "double_dqn.py").read_text()
    assert f"{len(source.splitlines())} lines; its copy" in text
    assert "A copy of [dqn](dqn.md), -1 +2 lines." in text
    assert "A copy of" not in pages.introduction("dqn")
    assert ast.get_docstring(ast.parse(source)).partition(".")[0] in pages.page("double_dqn")
