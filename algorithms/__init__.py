"""One file per algorithm; `python -m algorithms` lists them."""

import sys
from difflib import get_close_matches
from pathlib import Path


def refuse_unknown(argv: list[str]) -> None:
    """Exit with code 2 and a suggestion if the command is `python -m algorithms.<no such file>`."""
    name = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""
    package, _, stem = name.partition(".")
    known = [path.stem for path in Path(__file__).parent.glob("[a-z]*.py")]
    if package != "algorithms" or not stem or stem in known:
        return
    close = get_close_matches(stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "python -m algorithms lists what there is"
    print(f"there is no algorithm {stem}; {hint}", file=sys.stderr)
    sys.exit(2)


if sys.argv[0] == "-m":  # while Python looks for the module that it is to run
    refuse_unknown(sys.orig_argv)
