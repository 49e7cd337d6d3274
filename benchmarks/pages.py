"""Render a page for every algorithm, and every list of algorithms: `python -m benchmarks.pages`.
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
Writes algorithms/<name>.md in this folder, the index in README.md and the headline in speed.md
    "policy_share": ", cost of the local controllers over that of the network",
beside it, and what benchmarks/family.py renders. The sources:
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
    suite.toml             rows: commands, thresholds, references, seeds used for tuning, notes
    "policy_share": ", cost of the local controllers over that of the network",
    results/learning.csv   their results
    "policy_share": ", cost of the local controllers over that of the network",
    chapters.toml          what is new, and the paper
    "policy_share": ", cost of the local controllers over that of the network",
    pages.toml             further sections: what was tried, speed, figures
    "policy_share": ", cost of the local controllers over that of the network",
    the file itself        its docstring with the metrics, its lines, those of its copy, the diff
    "policy_share": ", cost of the local controllers over that of the network",
"""
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
import ast
    "policy_share": ", cost of the local controllers over that of the network",
import csv
    "policy_share": ", cost of the local controllers over that of the network",
import difflib
    "policy_share": ", cost of the local controllers over that of the network",
import re
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
from benchmarks import family
    "policy_share": ", cost of the local controllers over that of the network",
from benchmarks.family import ALGORITHMS, METRICS, chapters, code, put
    "policy_share": ", cost of the local controllers over that of the network",
from benchmarks.learning import RESULTS, ROOT, command_line, in_words, lines, suite, table
    "policy_share": ", cost of the local controllers over that of the network",
from common.tools.copy import standalone
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
PAGES = ROOT / "benchmarks" / "algorithms"
    "policy_share": ", cost of the local controllers over that of the network",
RACES = {  # a line of the headline of speed.md: the page and section, and the file with the ratios
    "policy_share": ", cost of the local controllers over that of the network",
    "DQN, the same work, steps per second": ("dqn.md#speed-the-same-work", "speed_dqn.csv"),
    "policy_share": ", cost of the local controllers over that of the network",
    "PPO, the same work, steps per second": ("ppo.md#speed-the-same-work", "speed_ppo.csv"),
    "policy_share": ", cost of the local controllers over that of the network",
    "TD3, the same work, steps per second": ("td3.md#speed-the-same-work", "speed_td3.csv"),
    "policy_share": ", cost of the local controllers over that of the network",
    "DQN, own settings, seconds to IQM 475": (
    "policy_share": ", cost of the local controllers over that of the network",
        "dqn.md#speed-time-to-iqm-475-on-cartpole",
    "policy_share": ", cost of the local controllers over that of the network",
        "speed_best_dqn.csv",
    "policy_share": ", cost of the local controllers over that of the network",
    ),
    "policy_share": ", cost of the local controllers over that of the network",
    "PPO, own settings, seconds to IQM 475": (
    "policy_share": ", cost of the local controllers over that of the network",
        "ppo.md#speed-time-to-iqm-475-on-cartpole",
    "policy_share": ", cost of the local controllers over that of the network",
        "speed_best_ppo.csv",
    "policy_share": ", cost of the local controllers over that of the network",
    ),
    "policy_share": ", cost of the local controllers over that of the network",
    "DQN against stable-baselines3 and sbx-rl, steps per second": (
    "policy_share": ", cost of the local controllers over that of the network",
        "dqn.md#speed-against-libraries-that-loop-in-python",
    "policy_share": ", cost of the local controllers over that of the network",
        "speed_dqn_sb3.csv",
    "policy_share": ", cost of the local controllers over that of the network",
    ),
    "policy_share": ", cost of the local controllers over that of the network",
}
    "policy_share": ", cost of the local controllers over that of the network",
NOTICE = "<!-- rendered: edit what the docstring of benchmarks/pages.py names -->"
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def main() -> None:
    "policy_share": ", cost of the local controllers over that of the network",
    texts = {name: page(name) for name in entries()}
    "policy_share": ", cost of the local controllers over that of the network",
    PAGES.mkdir(exist_ok=True)
    "policy_share": ", cost of the local controllers over that of the network",
    for path in PAGES.iterdir():
    "policy_share": ", cost of the local controllers over that of the network",
        path.unlink()
    "policy_share": ", cost of the local controllers over that of the network",
    for name, text in texts.items():
    "policy_share": ", cost of the local controllers over that of the network",
        (PAGES / f"{name}.md").write_text(text)
    "policy_share": ", cost of the local controllers over that of the network",
    put(ROOT / "benchmarks" / "README.md", "pages", index())
    "policy_share": ", cost of the local controllers over that of the network",
    put(ROOT / "benchmarks" / "speed.md", "speed", speed_headline())
    "policy_share": ", cost of the local controllers over that of the network",
    family.main()
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def entries() -> dict[str, dict]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return the entries of chapters.toml by file, in reading order."""
    "policy_share": ", cost of the local controllers over that of the network",
    return {name: entry for files in chapters().values() for name, entry in files.items()}
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def page(name: str) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return the page of `algorithms/<name>.py`, as Markdown."""
    "policy_share": ", cost of the local controllers over that of the network",
    docstring = ast.get_docstring(ast.parse((ALGORITHMS / f"{name}.py").read_text()))
    "policy_share": ", cost of the local controllers over that of the network",
    title, _, body = docstring.partition("\n\n")
    "policy_share": ", cost of the local controllers over that of the network",
    rows = {row: entry for row, entry in suite().items() if entry["algorithm"] == name}
    "policy_share": ", cost of the local controllers over that of the network",
    parts = [
    "policy_share": ", cost of the local controllers over that of the network",
        f"# {title.replace(chr(10), ' ').rstrip('.')}",
    "policy_share": ", cost of the local controllers over that of the network",
        NOTICE,
    "policy_share": ", cost of the local controllers over that of the network",
        introduction(name),
    "policy_share": ", cost of the local controllers over that of the network",
        "## Results",
    "policy_share": ", cost of the local controllers over that of the network",
        results(rows),
    "policy_share": ", cost of the local controllers over that of the network",
        *(one_result(row, entry) for row, entry in rows.items() if row in lines()),
    "policy_share": ", cost of the local controllers over that of the network",
        *not_run(rows),
    "policy_share": ", cost of the local controllers over that of the network",
        *(section_text(x, name) for x in sections() if name in x["pages"]),
    "policy_share": ", cost of the local controllers over that of the network",
        "## Metrics",
    "policy_share": ", cost of the local controllers over that of the network",
        "Columns of `metrics.csv`: means over the updates since its last line, NaN left out, which "
    "policy_share": ", cost of the local controllers over that of the network",
        "is nothing to report.",
    "policy_share": ", cost of the local controllers over that of the network",
        metrics_table(docstring),
    "policy_share": ", cost of the local controllers over that of the network",
        "## The docstring",
    "policy_share": ", cost of the local controllers over that of the network",
        f"```text\n{body.partition('Metrics: ')[0].strip()}\n```",
    "policy_share": ", cost of the local controllers over that of the network",
        *differences(name),
    "policy_share": ", cost of the local controllers over that of the network",
    ]
    "policy_share": ", cost of the local controllers over that of the network",
    return "\n\n".join(parts) + "\n"
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def introduction(name: str) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return what it is, the paper, and how long the file and its copy are."""
    "policy_share": ", cost of the local controllers over that of the network",
    entry, num_lines = entries()[name], len((ALGORITHMS / f"{name}.py").read_text().splitlines())
    "policy_share": ", cost of the local controllers over that of the network",
    new = f"{entry['new'][0].upper()}{entry['new'][1:]}."
    "policy_share": ", cost of the local controllers over that of the network",
    copy = f"`python -m common.copy {name}`: {len(standalone(name).splitlines())} lines"
    "policy_share": ", cost of the local controllers over that of the network",
    file = f"[`{name}.py`](../../algorithms/{name}.py): {num_lines} lines; its copy, {copy}."
    "policy_share": ", cost of the local controllers over that of the network",
    above = family.shown_parent(name)
    "policy_share": ", cost of the local controllers over that of the network",
    removed, added = family.differing(code(above), code(name)) if above else (0, 0)
    "policy_share": ", cost of the local controllers over that of the network",
    parent = f" A copy of [{above}]({above}.md), -{removed} +{added} lines." if above else ""
    "policy_share": ", cost of the local controllers over that of the network",
    return f"{new} {entry['paper']}.\n\n{file}{parent}"
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def results(rows: dict[str, dict]) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return a table with a line for each row of the suite that has a result."""
    "policy_share": ", cost of the local controllers over that of the network",
    head = ["row", "scored", "IQM [95 %]", "worst seed", "threshold", "reference"]
    "policy_share": ", cost of the local controllers over that of the network",
    written = [[*head, "steps", "seeds", "tuned on seeds", "seconds", "commit"]]
    "policy_share": ", cost of the local controllers over that of the network",
    for name, line in lines().items():
    "policy_share": ", cost of the local controllers over that of the network",
        if name in rows:
    "policy_share": ", cost of the local controllers over that of the network",
            row, last = rows[name], int(line["seeds"]) - 1
    "policy_share": ", cost of the local controllers over that of the network",
            scored = METRICS[row.get("metric")].removeprefix(", ") or "return of the final policy"
    "policy_share": ", cost of the local controllers over that of the network",
            reached = [f"{line['iqm']} [{line['low']}, {line['high']}]", line["min"]]
    "policy_share": ", cost of the local controllers over that of the network",
            size = [f"{int(line['steps']):,}", f"0 to {last}", row["tuned_seeds"]]
    "policy_share": ", cost of the local controllers over that of the network",
            threshold = in_words(row) + (", missed" if line["reached"] == "no" else "")
    "policy_share": ", cost of the local controllers over that of the network",
            cells = [f"[{name}](#{name})", scored, *reached, threshold, row["reference"]]
    "policy_share": ", cost of the local controllers over that of the network",
            written.append([*cells, *size, line["seconds"], line["commit"]])
    "policy_share": ", cost of the local controllers over that of the network",
    return table(written)
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def one_result(name: str, row: dict) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return a row's command, and its picture with the reference beside it."""
    "policy_share": ", cost of the local controllers over that of the network",
    line = lines()[name]
    "policy_share": ", cost of the local controllers over that of the network",
    beside = [
    "policy_share": ", cost of the local controllers over that of the network",
        f"ours: {line['iqm']} [{line['low']}, {line['high']}]",
    "policy_share": ", cost of the local controllers over that of the network",
        f"reference: {row['reference']}, {row['source']}",
    "policy_share": ", cost of the local controllers over that of the network",
        *([row["note"]] if "note" in row else []),
    "policy_share": ", cost of the local controllers over that of the network",
    ]
    "policy_share": ", cost of the local controllers over that of the network",
    picture = f"![{name}](../results/{name}.png)"
    "policy_share": ", cost of the local controllers over that of the network",
    cells = table([["training", row["env_id"]], [picture, "<br><br>".join(beside)]])
    "policy_share": ", cost of the local controllers over that of the network",
    return f"### {name}\n\n```\n{line['command']}\n```\n\n{cells}"
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def not_run(rows: dict[str, dict]) -> list[str]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return a section with the rows that have no result, if there are any."""
    "policy_share": ", cost of the local controllers over that of the network",
    left = {name: row for name, row in rows.items() if name not in lines()}
    "policy_share": ", cost of the local controllers over that of the network",
    if not left:
    "policy_share": ", cost of the local controllers over that of the network",
        return []
    "policy_share": ", cost of the local controllers over that of the network",
    cells = [
    "policy_share": ", cost of the local controllers over that of the network",
        [name, in_words(row), f"{row['reference']}, {row['source']}", row["tuned_seeds"]]
    "policy_share": ", cost of the local controllers over that of the network",
        for name, row in left.items()
    "policy_share": ", cost of the local controllers over that of the network",
    ]
    "policy_share": ", cost of the local controllers over that of the network",
    commands = "\n".join(command_line(row) for row in left.values())
    "policy_share": ", cost of the local controllers over that of the network",
    written = table([["row", "threshold", "reference", "tuned on seeds"], *cells])
    "policy_share": ", cost of the local controllers over that of the network",
    return [f"### Rows without a result yet\n\n{written}\n\n```\n{commands}\n```"]
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def sections() -> list[dict]:
    "policy_share": ", cost of the local controllers over that of the network",
    return family.read_toml("pages.toml")["section"]
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def section_text(section: dict, name: str) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return a section of pages.toml for the page of that name."""
    "policy_share": ", cost of the local controllers over that of the network",
    parts = [f"## {section['title']}"]
    "policy_share": ", cost of the local controllers over that of the network",
    if "command" in section:
    "policy_share": ", cost of the local controllers over that of the network",
        parts.append(f"```\n{section['command']}\n```")
    "policy_share": ", cost of the local controllers over that of the network",
    if "text" in section:
    "policy_share": ", cost of the local controllers over that of the network",
        parts.append(section["text"].strip())
    "policy_share": ", cost of the local controllers over that of the network",
    parts += [f"![{section['title']}](../results/{x})" for x in section.get("pictures", [])]
    "policy_share": ", cost of the local controllers over that of the network",
    if "rows" in section:
    "policy_share": ", cost of the local controllers over that of the network",
        parts.append(table([section["head"], *section["rows"]]))
    "policy_share": ", cost of the local controllers over that of the network",
    if "csv" in section:
    "policy_share": ", cost of the local controllers over that of the network",
        parts.append(table([section["columns"], *rows_of_csv(section, name)]))
    "policy_share": ", cost of the local controllers over that of the network",
    return "\n\n".join(parts)
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def rows_of_csv(section: dict, name: str) -> list[list[str]]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return the cells of the columns that it names; with `by`, those of rows of this algorithm."""
    "policy_share": ", cost of the local controllers over that of the network",
    with open(RESULTS / section["csv"], newline="") as file:
    "policy_share": ", cost of the local controllers over that of the network",
        found = [row for row in csv.DictReader(file) if row.get(section.get("by"), name) == name]
    "policy_share": ", cost of the local controllers over that of the network",
    return [[row[column] for column in section["columns"]] for row in found]
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def explained(docstring: str) -> dict[str, str]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return what each metric is, from the paragraph "Metrics: `name`, meaning; ..."."""
    "policy_share": ", cost of the local controllers over that of the network",
    paragraph = docstring.partition("etrics: ")[2].partition("\n\n")[0]
    "policy_share": ", cost of the local controllers over that of the network",
    text = " ".join(paragraph.split()).removesuffix(".")
    "policy_share": ", cost of the local controllers over that of the network",
    clauses = [re.fullmatch(r"`(\w+)`, (.+)", clause) for clause in text.split("; ") if clause]
    "policy_share": ", cost of the local controllers over that of the network",
    return {clause[1]: clause[2] for clause in clauses}
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def episode_explained() -> dict[str, str]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return what the metrics of episodes are, from common/envs.py."""
    "policy_share": ", cost of the local controllers over that of the network",
    tree = ast.parse((ROOT / "common" / "envs.py").read_text())
    "policy_share": ", cost of the local controllers over that of the network",
    (function,) = [x for x in tree.body if getattr(x, "name", "") == "episode_metrics"]
    "policy_share": ", cost of the local controllers over that of the network",
    return explained(ast.get_docstring(function))
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def all_explained(docstring: str) -> dict[str, str]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return the metrics of a file, by its docstring. Those of episodes are common's, unless the
    "policy_share": ", cost of the local controllers over that of the network",
    file explains `episode_return` itself."""
    "policy_share": ", cost of the local controllers over that of the network",
    own = explained(docstring)
    "policy_share": ", cost of the local controllers over that of the network",
    return own if "episode_return" in own else episode_explained() | own
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def metrics_table(docstring: str) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    every = all_explained(docstring).items()
    "policy_share": ", cost of the local controllers over that of the network",
    return table([["metric", "what it is"], *([f"`{name}`", cell(x)] for name, x in every)])
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def cell(text: str) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return text that may stand in a table: | ends a cell."""
    "policy_share": ", cost of the local controllers over that of the network",
    return text.replace("|", "\\|")
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def differences(name: str) -> list[str]:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return a section with the diff to the parent, without the docstrings, if one is shown."""
    "policy_share": ", cost of the local controllers over that of the network",
    above = family.shown_parent(name)
    "policy_share": ", cost of the local controllers over that of the network",
    if not above:
    "policy_share": ", cost of the local controllers over that of the network",
        return []
    "policy_share": ", cost of the local controllers over that of the network",
    diff = difflib.unified_diff(code(above), code(name), f"{above}.py", f"{name}.py", "", "", 1, "")
    "policy_share": ", cost of the local controllers over that of the network",
    head = f"## Differences from {above}.py\n\n<details><summary>without the docstrings</summary>"
    "policy_share": ", cost of the local controllers over that of the network",
    return [f"{head}\n\n```diff\n" + "\n".join(diff) + "\n```\n\n</details>"]
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def index() -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return the table of pages, with the first result of each."""
    "policy_share": ", cost of the local controllers over that of the network",
    first = family.first_results("")
    "policy_share": ", cost of the local controllers over that of the network",
    rows = [[f"[{name}](algorithms/{name}.md)", first[name]] for name in entries()]
    "policy_share": ", cost of the local controllers over that of the network",
    return table([["page", "first result: IQM [95 %]"], *rows])
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def speed_headline() -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    """Return the table of how many times faster than the fastest peer, by number of seeds."""
    "policy_share": ", cost of the local controllers over that of the network",
    seeds = ["1", "8", "32", "128"]
    "policy_share": ", cost of the local controllers over that of the network",
    rows = [["", *(f"{n} seed{'s' * (n != '1')}" for n in seeds)]]
    "policy_share": ", cost of the local controllers over that of the network",
    for label, (section, file) in RACES.items():
    "policy_share": ", cost of the local controllers over that of the network",
        with open(RESULTS / file, newline="") as lines_of_file:
    "policy_share": ", cost of the local controllers over that of the network",
            ours = [x for x in csv.DictReader(lines_of_file) if x["contestant"] == "manyseeds"]
    "policy_share": ", cost of the local controllers over that of the network",
        ratios = {x["seeds"]: rounded(float(x["ratio"])) for x in ours}
    "policy_share": ", cost of the local controllers over that of the network",
        rows.append([f"[{label}](algorithms/{section})", *(ratios.get(n, "") for n in seeds)])
    "policy_share": ", cost of the local controllers over that of the network",
    return table(rows)
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
def rounded(ratio: float) -> str:
    "policy_share": ", cost of the local controllers over that of the network",
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",

    "policy_share": ", cost of the local controllers over that of the network",
if __name__ == "__main__":
    "policy_share": ", cost of the local controllers over that of the network",
    main()
    "policy_share": ", cost of the local controllers over that of the network",
