"""notebook.ipynb: its code is that of notebook.py, and runs."""

import json

import numpy as np
import pytest
from helpers import ROOT

SCRIPT, NOTEBOOK = ROOT / "benchmarks" / "notebook.py", ROOT / "benchmarks" / "notebook.ipynb"


def as_notebook(text):
    """The notebook of a script whose cells begin with `# %%`, as JSON."""
    cells = []
    for part in ("\n" + text).split("\n# %%")[1:]:
        kind, _, body = part.partition("\n")
        is_text = kind.strip() == "[markdown]"
        body = body.strip("\n")
        if is_text:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
        cell = {"cell_type": "markdown" if is_text else "code", "id": f"cell-{len(cells)}"}
        cell |= {"metadata": {}, "source": body.splitlines(keepends=True)}
        cells.append(cell if is_text else cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}}
    return json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def test_the_notebook_is_that_of_the_script():
    """To write it again: PYTHONPATH=tests python tests/benchmarks/test_notebook.py"""
    assert NOTEBOOK.read_text() == as_notebook(SCRIPT.read_text())


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("64, 30_000", "8, 5_000")
            exec(compile(code, "notebook", "exec"), names)
    assert names["curves"].shape == (8, 25) and names["scores"].shape == (4, 2)
    assert np.isfinite(names["line"]).all() and (names["low"] <= names["high"]).all()
    assert (tmp_path / "notebook-seeds.png").stat().st_size > 5_000
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:4]] == ["1e-04", "3e-04", "1e-03", "3e-03"]
    assert printed[-1] in ("0", "1")


if __name__ == "__main__":
    NOTEBOOK.write_text(as_notebook(SCRIPT.read_text()))
