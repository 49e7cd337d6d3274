"""Takes an algorithm away, as one file that stands alone and reads as if written by hand.

    python -m common.copy dqn path/to/dqn.py

The copy is the algorithm as it is; above it, what it uses of `common`; below it, a lean `main` in
place of the harness. Definitions are copied letter by letter, with two exceptions:

- an import of `common` inside a function goes, and what it names comes along;
- an `if` without `else` that starts with such an import is optional equipment: a copy has it only
  if a string of its condition, say "-tabular", is part of a string in the algorithm's own code.

Standard library only, and nothing is imported from the algorithm: a copy takes a moment.
"""

import argparse
import ast
import builtins
import difflib
import functools
import os
import re
import symtable
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
REPLACED = {"common.run": "common.tools.standalone_main"}  # the harness, by a lean main
UNDECLARED = {"gymnax": ["six"]}  # what a package imports and does not require
ORIGIN = "Copied from manyseeds, to stand alone: it needs the packages above and nothing else."


class Import(NamedTuple):
    """One name of an import statement."""

    bound: str  # the name that the code uses
    module: str
    name: str | None  # in `from module import name`; None: `import module`
    alias: str | None


class Definition(NamedTuple):
    """Lines of a module as they go into the copy: one definition, or an algorithm's whole body."""

    module: str
    names: tuple[str, ...]  # bound at the top level
    first: int  # line in the module, of the comment or the decorator above if there is one
    last: int
    text: str
    uses: tuple[str, ...]  # global names
    imports: tuple[Import, ...]  # of `common`, inside functions


class Module(NamedTuple):
    docstring: str  # with its quotes
    imports: list[Import]  # at the top
    definitions: list[Definition]


def standalone(name: str, root: Path = ROOT) -> str:
    """The text of the copy of `algorithms/<name>.py`."""
    path = f"algorithms.{name}"
    words = [x for node in parse(path, root)[1].body[1:] for x in strings(node)]

    @functools.cache
    def load(module: str) -> Module:
        return read_module(module, root, words)

    body, start = load(path).definitions
    above = reach(load, body)
    found = [*above, *(x for x in reach(load, start) if x not in above)]
    refuse_clashes(found)

    order = module_order(load, [path, *(x.module for x in found if isinstance(x, Definition))])
    libraries = [load(module) for module in order if module != path]
    groups = [(m, [d for d in m.definitions if d in above]) for m in libraries]
    lean_main = [d for m in libraries for d in m.definitions if d in found and d not in above]
    groups += [(load(path), [body]), (load(REPLACED["common.run"]), lean_main)]

    imports = import_block({x for x in found if isinstance(x, Import)})
    sections = [section(module, group) for module, group in groups if group]
    code = imports + "\n\n" + "\n\n\n".join([*sections, start.text])
    docstring = load(path).docstring.removesuffix('"""').rstrip()
    text = f'{docstring}\n\n{ORIGIN}\n"""\n\n{code}\n'
    return script_header(text, root) + text


def parse(module: str, root: Path) -> tuple[list[str], ast.Module]:
    """The lines and the syntax tree of a module."""
    source = (root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    return source.splitlines(), ast.parse(source)


def strings(node: ast.AST) -> list[str]:
    """The string constants in a piece of code."""
    constants = [x.value for x in ast.walk(node) if isinstance(x, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def read_module(module: str, root: Path, words: list[str]) -> Module:
    """A file of `common`, definition by definition; or of `algorithms`: its body, its last `if`."""
    lines, tree = parse(module, root)
    nodes = tree.body
    docstring = "\n".join(lines[nodes[0].lineno - 1 : nodes[0].end_lineno])
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in nodes[1:] if node not in imports]
    blocks = [[node] for node in rest] if module.startswith("common.") else [rest[:-1], rest[-1:]]
    definitions = [define(module, lines, block, words) for block in blocks]
    return Module(docstring, list(names_imported(imports)), definitions)


def define(module: str, lines: list[str], nodes: list[ast.stmt], words) -> Definition:
    """The lines from the first of `nodes` to the last, less their imports of `common`."""
    first, last = first_line(nodes[0], lines), nodes[-1].end_lineno
    imports, dropped = [], set()
    for node in (node for top in nodes for node in ast.walk(top)):
        if of_common(node):
            imports += names_imported([node])
        if of_common(node) or is_left_out(node, words):
            dropped |= set(range(first_line(node, lines), node.end_lineno + 1))
    text = "\n".join(keep(lines, range(first, last + 1), dropped))
    names = tuple(name for node in nodes for name in names_bound(node))
    if module.startswith("common.") and not names:
        raise ValueError(
            f"{module}, line {first}: a copy takes imports, definitions and assignments, not this"
        )
    return Definition(module, names, first, last, text, global_names(text), tuple(imports))


def first_line(node: ast.stmt, lines: list[str]) -> int:
    """The line on which a statement begins, its decorators and the comment on it included."""
    line = min(top.lineno for top in [node, *getattr(node, "decorator_list", [])])
    while line > 1 and lines[line - 2].lstrip().startswith("#"):
        line -= 1
    return line


def keep(lines: list[str], numbers: Iterable[int], dropped: Collection[int]) -> Iterator[str]:
    """The lines of those numbers but for the dropped, which take a blank line below along."""
    previous = ""
    for number in numbers:
        line = lines[number - 1]
        superfluous = number - 1 in dropped and not line
        after_import = previous.lstrip().startswith(("import ", "from "))
        if number not in dropped and (after_import or not superfluous):
            yield line
            previous = line


def of_common(node: ast.AST) -> bool:
    """Whether a node imports names from a module of `common`."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common.")


def is_left_out(node: ast.AST, words: list[str]) -> bool:
    """Whether a node is optional equipment that an algorithm with those strings does not name."""
    if not isinstance(node, ast.If) or node.orelse or not of_common(node.body[0]):
        return False
    return not any(text in word for text in strings(node.test) for word in words)


def names_imported(nodes: Iterable[ast.stmt]) -> Iterator[Import]:
    """Every name that import statements bind."""
    for node in nodes:
        for name, alias in ((alias.name, alias.asname) for alias in node.names):
            if isinstance(node, ast.Import):
                found = Import(alias or name.split(".")[0], name, None, alias)
            else:
                found = Import(alias or name, REPLACED.get(node.module, node.module), name, alias)
            if found.module.split(".")[0] == "common" and (not of_common(node) or alias):
                raise ValueError(f"{ast.unparse(node)}: a copy needs `from common.x import name`")
            yield found


def names_bound(node: ast.stmt) -> list[str]:
    """The names that a definition or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    names = [x for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def global_names(text: str) -> tuple[str, ...]:
    """The names that code takes from its module, or from the builtins."""

    def walk(table):
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    return tuple(sorted(set(walk(symtable.symtable(text, "copy", "exec")))))


def reach(load: Callable, start: Definition) -> list[Definition | Import]:
    """What a definition needs, with itself: definitions, and imports from elsewhere."""
    found = [start]
    for definition in found:  # which grows on the way
        if isinstance(definition, Definition):
            targets = [x for name in definition.uses for x in lookup(load, definition, name)]
            found += [x for x in dict.fromkeys(targets) if x not in found]
    return found


def lookup(load: Callable, definition: Definition, name: str) -> list[Definition | Import]:
    """What a global name of a definition stands for; nothing if it is a builtin."""
    local = [x for x in definition.imports if x.bound == name]
    return [y for x in local for y in follow(load, x)] or resolve(load, definition.module, name)


def resolve(load: Callable, module: str, name: str) -> list[Definition | Import]:
    """What a name stands for at the top level of a module."""
    own = [x for x in load(module).definitions if name in x.names]
    imports = [x for x in load(module).imports if x.bound == name]
    return own or [y for x in imports for y in follow(load, x)]


def follow(load: Callable, imported: Import) -> list[Definition | Import]:
    """An import from elsewhere as it is; of one from `common`, the definition."""
    if not imported.module.startswith("common."):
        return [imported]
    found = resolve(load, imported.module, imported.name)
    if not found:
        raise ValueError(f"{imported.module} does not define {imported.name}")
    return found


def refuse_clashes(found: Iterable[Definition | Import]) -> None:
    """ValueError if a name would mean two things in one file."""
    meaning = dict.fromkeys(dir(builtins), "Python itself")
    for x in found:
        if isinstance(x, Definition):
            sources = dict.fromkeys(x.names, x.module)
        elif x.name:
            sources = {x.bound: f"{x.module}.{x.name}"}
        else:
            sources = {x.bound: x.module if x.alias else x.bound}  # `import a` is in `import a.b`
        for name, source in sources.items():
            if meaning.setdefault(name, source) != source:
                raise ValueError(f"{name} is of {meaning[name]} and of {source}: rename one")


def module_order(load: Callable, modules: Iterable[str]) -> list[str]:
    """Modules such that each comes after those that it imports at its top."""
    order = []
    for module in modules:
        imported = (x.module for x in load(module).imports if x.module.startswith("common."))
        order += [x for x in [*module_order(load, imported), module] if x not in order]
    return order


def section(module: Module, definitions: list[Definition]) -> str:
    """Definitions of one module, below the first line of its docstring as a comment."""
    text = "# " + ast.literal_eval(module.docstring).strip().splitlines()[0]
    last = None
    for definition in definitions:
        text += "\n" if last and definition.first == last + 1 else "\n\n\n"
        text += definition.text
        last = definition.last
    return text


def import_block(imports: Iterable[Import]) -> str:
    """Import statements in the order and the form of ruff's isort."""
    statements = {}  # the names in each; one that is renamed has a statement to itself
    for x in imports:
        statement = x.module, x.name if x.alias else x.name is None, x.alias
        statements.setdefault(statement, []).append(x.name)
    parts = [[], [], []]
    for (module, _, alias), names in statements.items():
        package = module.split(".")[0]
        part = 0 if package == "__future__" else 1 if package in sys.stdlib_module_names else 2
        members = sorted(map(member_key, filter(None, names)))
        text = import_statement(module, [name for *_, name in members], alias)
        parts[part].append((members != [], module.lower(), members, text))
    return "\n\n".join("\n".join(text for *_, text in sorted(part)) for part in parts if part)


def member_key(name: str) -> tuple[int, str, str]:
    """isort's order of the names from one module: CONSTANTS, Classes, functions."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name.lower(), name


def import_statement(module: str, names: list[str], alias: str | None) -> str:
    """`import module` or, with names, `from module import names`; within 100 columns."""
    suffix = f" as {alias}" if alias else ""
    if not names:
        return f"import {module}{suffix}"
    text = f"from {module} import {', '.join(names)}{suffix}"
    lines = "".join(f"    {name}{suffix},\n" for name in names)
    return text if len(text) <= 100 else f"from {module} import (\n{lines})"


def script_header(text: str, root: Path) -> str:
    """PEP 723's comment: the packages that the text imports, as requirements.txt wants them."""
    nodes = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Import | ast.ImportFrom)]
    packages = {x.module.split(".")[0] for x in names_imported(nodes)} - sys.stdlib_module_names
    packages |= {x for package in packages for x in UNDECLARED.get(package, [])}
    requirements = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {re.match(r"[\w.-]*", line)[0]: line.split("#")[0].strip() for line in requirements}
    lines = ['requires-python = ">=3.11"', "dependencies = ["]
    lines += [f'    "{wanted.get(package, package)}",' for package in sorted(packages)]
    return "\n".join(f"# {line}" for line in ["/// script", *lines, "]", "///"]) + "\n\n"


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m common.copy", description="Writes an algorithm as one standalone file."
    )
    parser.add_argument("algorithm", help="its name, for example dqn")
    parser.add_argument("destination", help="the file to write, or the folder to write it into")
    args = parser.parse_args()
    path = args.destination
    if os.path.isdir(path):
        path = os.path.join(path, f"{args.algorithm}.py")
    try:
        text = standalone(known(args.algorithm))
        with open(path, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        return refuse(f"{path} exists: remove it first, or choose another name", 2)
    except ValueError as error:
        return refuse(str(error), 2)
    except OSError as error:
        return refuse(f"cannot write {path}: {error.strerror}", 5)
    print(f"wrote {path}; to run it: python {path} --help")
    return 0


def known(algorithm: str) -> str:
    """The name of an algorithm, if there is one of that name."""
    names = sorted(path.stem for path in (ROOT / "algorithms").glob("[!_]*.py"))
    if algorithm not in names:
        close = difflib.get_close_matches(algorithm, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no algorithm {algorithm!r}; {hint}There are: {', '.join(names)}")
    return algorithm


def refuse(message: str, code: int) -> int:
    """Says why on stderr; returns the exit code."""
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
