"""Render a page for every algorithm, and every list of algorithms: `python -m benchmarks.pages`.

Writes algorithms/<name>.md in this folder, the index in README.md and the headline in speed.md
beside it, and what benchmarks/family.py renders. The sources:

    suite.toml             rows: commands, thresholds, references, seeds used for tuning, notes
    results/learning.csv   their results
    chapters.toml          what is new, and the paper
    pages.toml             further sections: what was tried, speed, figures
    the file itself        its docstring with the metrics, its lines, those of its copy, the diff
"""

import ast
import csv
import difflib
import re

from benchmarks import family
from benchmarks.family import ALGORITHMS, METRICS, chapters, code, put
from benchmarks.learning import RESULTS, ROOT, command_line, in_words, lines, suite, table
from common.tools.copy import standalone

PAGES = ROOT / "benchmarks" / "algorithms"
RACES = {  # a line of the headline of speed.md: the page and section, and the file with the ratios
    "DQN, the same work, steps per second": ("dqn.md#speed-the-same-work", "speed_dqn.csv"),
    "PPO, the same work, steps per second": ("ppo.md#speed-the-same-work", "speed_ppo.csv"),
    "TD3, the same work, steps per second": ("td3.md#speed-the-same-work", "speed_td3.csv"),
    "SAC, the same work, steps per second": ("sac.md#speed-the-same-work", "speed_sac.csv"),
    "DDPG, the same work, steps per second": ("ddpg.md#speed-the-same-work", "speed_ddpg.csv"),
    "C51, the same work, steps per second": ("c51.md#speed-the-same-work", "speed_c51.csv"),
    "Rainbow, the same work, steps per second": (
        "rainbow.md#speed-the-same-work",
        "speed_rainbow.csv",
    ),
    "R2D2, the same work, steps per second": ("r2d2.md#speed-the-same-work", "speed_r2d2.csv"),
    "REINFORCE, the same work, steps per second": (
        "reinforce.md#speed-the-same-work",
        "speed_reinforce.csv",
    ),
    "DQN, own settings, seconds to IQM 475": (
        "dqn.md#speed-time-to-iqm-475-on-cartpole",
        "speed_best_dqn.csv",
    ),
    "PPO, own settings, seconds to IQM 475": (
        "ppo.md#speed-time-to-iqm-475-on-cartpole",
        "speed_best_ppo.csv",
    ),
    "PPO against Brax's own, steps per second": (
        "ppo.md#speed-the-same-work-on-brax",
        "speed_ppo_brax.csv",
    ),
    "PPO on MinAtar, steps per second": (
        "ppo.md#speed-the-same-work-on-minatar",
        "speed_ppo_minatar.csv",
    ),
    "DQN on MinAtar, steps per second": (
        "dqn.md#speed-the-same-work-on-minatar",
        "speed_dqn_minatar.csv",
    ),
    "PETS against mbrl-lib, steps per second": ("pets.md#speed-the-same-work", "speed_pets.csv"),
    "MPC against mbrl-lib, steps per second": ("mpc.md#speed-the-same-work", "speed_mpc.csv"),
    "A2C against stable-baselines3, steps per second": (
        "a2c.md#speed-the-same-work",
        "speed_a2c.csv",
    ),
    "DQN against stable-baselines3 and sbx-rl, steps per second": (
        "dqn.md#speed-against-libraries-that-loop-in-python",
        "speed_dqn_sb3.csv",
    ),
}
NOTICE = "<!-- rendered: edit what the docstring of benchmarks/pages.py names -->"


def main() -> None:
    texts = {name: page(name) for name in entries()}
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.iterdir():
        path.unlink()
    for name, text in texts.items():
        (PAGES / f"{name}.md").write_text(text)
    put(ROOT / "benchmarks" / "README.md", "pages", index())
    put(ROOT / "benchmarks" / "speed.md", "speed", speed_headline())
    family.main()


def entries() -> dict[str, dict]:
    """Return the entries of chapters.toml by file, in reading order."""
    return {name: entry for files in chapters().values() for name, entry in files.items()}


def page(name: str) -> str:
    """Return the page of `algorithms/<name>.py`, as Markdown."""
    docstring = ast.get_docstring(ast.parse((ALGORITHMS / f"{name}.py").read_text()))
    title, _, body = docstring.partition("\n\n")
    rows = {row: entry for row, entry in suite().items() if entry["algorithm"] == name}
    parts = [
        f"# {title.replace(chr(10), ' ').rstrip('.')}",
        NOTICE,
        introduction(name),
        "## Results",
        results(rows),
        *(one_result(row, entry) for row, entry in rows.items() if row in lines()),
        *not_run(rows),
        *(section_text(x, name) for x in sections() if name in x["pages"]),
        "## Metrics",
        "Columns of `metrics.csv`: means over the updates since its last line, NaN left out, which "
        "is nothing to report.",
        metrics_table(docstring),
        "## The docstring",
        f"```text\n{body.partition('Metrics: ')[0].strip()}\n```",
        *differences(name),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(name: str) -> str:
    """Return what it is, the paper, and how long the file and its copy are."""
    entry, num_lines = entries()[name], len((ALGORITHMS / f"{name}.py").read_text().splitlines())
    new = f"{entry['new'][0].upper()}{entry['new'][1:]}."
    copy = f"`python -m common.copy {name}`: {len(standalone(name).splitlines())} lines"
    file = f"[`{name}.py`](../../algorithms/{name}.py): {num_lines} lines; its copy, {copy}."
    above = family.shown_parent(name)
    removed, added = family.differing(code(above), code(name)) if above else (0, 0)
    parent = f" A copy of [{above}]({above}.md), -{removed} +{added} lines." if above else ""
    return f"{new} {entry['paper']}.\n\n{file}{parent}"


def results(rows: dict[str, dict]) -> str:
    """Return a table with a line for each row of the suite that has a result."""
    head = ["row", "scored", "IQM [95 %]", "worst seed, or range", "threshold", "reference"]
    written = [[*head, "steps", "seeds", "tuned on seeds", "seconds", "commit"]]
    for name, line in lines().items():
        if name in rows:
            row, last = rows[name], int(line["seeds"]) - 1
            scored = METRICS[row.get("metric")].removeprefix(", ") or "return of the final policy"
            is_band = isinstance(row["threshold"], list)  # neither end need be the worse one
            worst = f"{line['min']} to {line['max']}" if is_band else line["min"]
            reached = [f"{line['iqm']} [{line['low']}, {line['high']}]", worst]
            size = [f"{int(line['steps']):,}", f"0 to {last}", row["tuned_seeds"]]
            threshold = in_words(row) + (", missed" if line["reached"] == "no" else "")
            cells = [f"[{name}](#{name})", scored, *reached, threshold, row["reference"]]
            written.append([*cells, *size, line["seconds"], line["commit"]])
    return table(written)


def one_result(name: str, row: dict) -> str:
    """Return a row's command, and its picture with the reference beside it."""
    line = lines()[name]
    beside = [
        f"ours: {line['iqm']} [{line['low']}, {line['high']}]",
        f"reference: {row['reference']}, {row['source']}",
        *([row["note"]] if "note" in row else []),
    ]
    picture = f"![{name}](../results/{name}.png)"
    cells = table([["training", row["env_id"]], [picture, "<br><br>".join(beside)]])
    return f"### {name}\n\n```\n{line['command']}\n```\n\n{cells}"


def not_run(rows: dict[str, dict]) -> list[str]:
    """Return a section with the rows that have no result, if there are any."""
    left = {name: row for name, row in rows.items() if name not in lines()}
    if not left:
        return []
    cells = [
        [name, in_words(row), f"{row['reference']}, {row['source']}", row["tuned_seeds"]]
        for name, row in left.items()
    ]
    commands = "\n".join(command_line(row) for row in left.values())
    written = table([["row", "threshold", "reference", "tuned on seeds"], *cells])
    return [f"### Rows without a result yet\n\n{written}\n\n```\n{commands}\n```"]


def sections() -> list[dict]:
    return family.read_toml("pages.toml")["section"]


def section_text(section: dict, name: str) -> str:
    """Return a section of pages.toml for the page of that name."""
    parts = [f"## {section['title']}"]
    if "command" in section:
        parts.append(f"```\n{section['command']}\n```")
    if "text" in section:
        parts.append(section["text"].strip())
    parts += [f"![{section['title']}](../results/{x})" for x in section.get("pictures", [])]
    if "rows" in section:
        parts.append(table([section["head"], *section["rows"]]))
    if "csv" in section:
        parts.append(table([section["columns"], *rows_of_csv(section, name)]))
    return "\n\n".join(parts)


def rows_of_csv(section: dict, name: str) -> list[list[str]]:
    """Return the cells of the columns that it names; with `by`, those of rows of this algorithm."""
    with open(RESULTS / section["csv"], newline="") as file:
        found = [row for row in csv.DictReader(file) if row.get(section.get("by"), name) == name]
    return [[row[column] for column in section["columns"]] for row in found]


def explained(docstring: str) -> dict[str, str]:
    """Return what each metric is, from the paragraph "Metrics: `name`, meaning; ..."."""
    paragraph = docstring.partition("etrics: ")[2].partition("\n\n")[0]
    text = " ".join(paragraph.split()).removesuffix(".")
    clauses = [re.fullmatch(r"`(\w+)`, (.+)", clause) for clause in text.split("; ") if clause]
    return {clause[1]: clause[2] for clause in clauses}


def episode_explained() -> dict[str, str]:
    """Return what the metrics of episodes are, from common/envs.py."""
    tree = ast.parse((ROOT / "common" / "envs.py").read_text())
    (function,) = [x for x in tree.body if getattr(x, "name", "") == "episode_metrics"]
    return explained(ast.get_docstring(function))


def all_explained(docstring: str) -> dict[str, str]:
    """Return the metrics of a file, by its docstring. Those of episodes are common's, unless the
    file explains `episode_return` itself."""
    own = explained(docstring)
    return own if "episode_return" in own else episode_explained() | own


def metrics_table(docstring: str) -> str:
    every = all_explained(docstring).items()
    return table([["metric", "what it is"], *([f"`{name}`", cell(x)] for name, x in every)])


def cell(text: str) -> str:
    """Return text that may stand in a table: | ends a cell."""
    return text.replace("|", "\\|")


def differences(name: str) -> list[str]:
    """Return a section with the diff to the parent, without the docstrings, if one is shown."""
    above = family.shown_parent(name)
    if not above:
        return []
    diff = difflib.unified_diff(code(above), code(name), f"{above}.py", f"{name}.py", "", "", 1, "")
    head = f"## Differences from {above}.py\n\n<details><summary>without the docstrings</summary>"
    return [f"{head}\n\n```diff\n" + "\n".join(diff) + "\n```\n\n</details>"]


def index() -> str:
    """Return the table of pages, a row for each chapter."""
    rows = [
        [title, ", ".join(f"[{name}](algorithms/{name}.md)" for name in files)]
        for title, files in chapters().items()
    ]
    return table([["chapter", "pages"], *rows])


def speed_headline() -> str:
    """Return the table of how many times faster than the fastest peer, by number of seeds."""
    seeds = ["1", "8", "32", "128"]
    rows = [["", *(f"{n} seed{'s' * (n != '1')}" for n in seeds)]]
    for label, (section, file) in RACES.items():
        with open(RESULTS / file, newline="") as lines_of_file:
            ours = [x for x in csv.DictReader(lines_of_file) if x["contestant"] == "manyseeds"]
        ratios = {x["seeds"]: rounded(float(x["ratio"])) for x in ours}
        rows.append([f"[{label}](algorithms/{section})", *(ratios.get(n, "") for n in seeds)])
    return table(rows)


def rounded(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


if __name__ == "__main__":
    main()
