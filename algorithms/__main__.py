"""List the algorithms: `python -m algorithms`."""

import ast
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    print(f"python -m algorithms.{path.stem:20} {docstring.partition(chr(10))[0]}")
