"""Copies an algorithm into one file that stands alone and reads as if written by hand.

    python -m common.copy dqn path/to/dqn.py [--with brax] [--fast-cpu]

The copy holds the algorithm as it is, then the definitions that it uses from the repository, then a
lean `main` in place of the runner. Definitions are copied letter by letter, with these exceptions:

- Imports from the repository are removed, and the definitions that they name come along.
- A statement whose first line ends in one of these comments is left out: `# not copied`;
  `# copied --fast-cpu` without that option; `# copied for TEXT` unless TEXT, or one of several
  with `or` between them, is in the code of the algorithm or in a name behind --with;
  `# copied unless TEXT` if it is.
- Calls of `require`, and a `__post_init__` that holds nothing else, are left out.
- Docstrings of definitions keep their first paragraph, and comments for pyright are left out.
- Of the families of environments (`lazy` in common/envs.py) a copy has that of the default
  environment, gymnax's, and those that --with names. Of a table of environments by id it has the
  default one, and those that --with names.

Uses the standard library only and imports nothing from the algorithm, so that copying is fast.
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

ROOT = Path(__file__).resolve().parent.parent.parent
REPLACED = {"common.run": "common.tools.standalone_main"}  # the runner, by a lean main
LEAN_ENVS = {  # what defines `make_env` and more in fewer lines for a single family
    "gymnax": "common.tools.standalone_gymnax",
    "tabular": "common.tools.standalone_tabular",
}
LEAN_EPISODES = "common.tools.standalone_episode"  # goes with each of them
PLAY_WITH_MEMORY = "common.tools.standalone_memory"  # goes with `init_memory`
LEAN_DATASETS = "common.tools.standalone_datasets"  # goes with `common.datasets`
WRAPPERS = ("history", "positions")  # families of ids that end so, around another id
UNDECLARED = {"gymnax": ["six"]}  # what a package imports and does not require
ORIGIN = "Copied from manyseeds: stands alone, with the packages named above."
WITH_GYMNAX = (
    "Copied from manyseeds, stands alone; --env-id finds what you register with gymnax above."
)
MARK = re.compile(r"  # (?:not copied|copied (?P<rule>for|unless|--)(?: ?)(?P<text>.+))$")
PRAGMA = re.compile(r"  # pyright: .+$")  # for the repository's own check


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
    eager: tuple[str, ...]  # the names that it evaluates when it is defined
    imports: tuple[Import, ...]  # from the repository, inside functions


class Module(NamedTuple):
    docstring: str  # "" if there is none
    imports: list[Import]  # at the top level
    definitions: list[Definition]


class Family(NamedTuple):
    """A family of environments, as common/envs.py names it."""

    name: str  # "brax"
    module: str
    make: str  # its function


class Choice(NamedTuple):
    """What goes into a copy."""

    root: Path  # of the repository
    env_id: str  # the default environment
    families: list[Family]
    options: tuple[str, ...]  # the names behind --with, and "fast-cpu"
    code: str  # of the algorithm, without its docstring
    lean_envs: str | None  # the module of LEAN_ENVS that is enough


def standalone(name: str, options: Iterable[str] = (), root: Path = ROOT) -> str:
    """Return the text of the copy of `algorithms/<name>.py`; ValueError if there can be none."""
    path = f"algorithms.{name}"
    choice = choose(path, tuple(options), root)

    @functools.cache
    def load(module: str) -> Module:
        read = read_module(module, choice, as_algorithm=module == path)
        is_replaced = choice.lean_envs and module in ("common.envs", "common.environments.tabular")
        for lean in (choice.lean_envs, LEAN_EPISODES) if is_replaced else ():
            read = with_definitions(read, load(lean))
        if module == REPLACED["common.run"] and "init_memory" in choice.code:
            read = with_definitions(read, load(PLAY_WITH_MEMORY))
        if module in ("common.datasets", "common.environments.experts"):
            read = with_definitions(read, load(LEAN_DATASETS))
        return read

    body, start = load(path).definitions
    found = list(dict.fromkeys([*reach(load, [body]), *reach(load, [start])]))
    refuse_clashes(found)

    definitions = [x for x in found if isinstance(x, Definition) and x not in (body, start)]
    above = [x for x in reach(load, eager_definitions(load, body)) if x in definitions]
    below = [x for x in definitions if x not in above]
    modules = module_order(load, [path, *(x.module for x in definitions)])
    replacements = *LEAN_ENVS.values(), LEAN_EPISODES, PLAY_WITH_MEMORY, LEAN_DATASETS
    modules = [x for x in modules if x not in replacements]
    sections = [*sections_of(load, modules, above), body.text]
    sections += [*sections_of(load, modules, below), start.text]

    imports = import_block({x for x in found if isinstance(x, Import)})
    space = "\n\n\n" if sections[0].startswith(("class ", "def ", "@")) else "\n\n"  # as isort
    code = f"from __future__ import annotations\n\n{imports}{space}" + "\n\n\n".join(sections)
    docstring = load(path).docstring.partition("\n\nMetrics:")[0]  # a copy prints the return alone
    origin = WITH_GYMNAX if "import gymnax\n" in f"{imports}\n" else ORIGIN
    docstring = f"{docstring.rstrip()}\n\n{origin}".strip()
    text = f'"""{docstring}\n"""\n\n{code}\n'
    return script_header(text, root) + text


def with_definitions(module: Module, replacement: Module) -> Module:
    """Return a module with the definitions of another one in place of those of the same name."""
    found = {name: x for x in replacement.definitions for name in x.names}
    definitions = [found.get(x.names[0], x) for x in module.definitions]
    return module._replace(definitions=definitions)


# What goes into a copy.


def choose(path: str, options: tuple[str, ...], root: Path) -> Choice:
    """Return the Choice for an algorithm; ValueError if an option means nothing."""
    families = families_by_pattern(root)
    env_id = default_env_id(path, root)
    chosen = families_of(families, env_id)
    names = [family.name for family in families.values()]
    texts = texts_in_marks(root)
    for option in options:
        asked = [family for family in families.values() if family.name == option]
        asked = asked or families_of(families, option)
        is_known = option in (*names, "fast-cpu") or any(text in option for text in texts)
        if asked == families_of(families, "") and not is_known:
            raise ValueError(f"--with {option}: give an id, or one of {', '.join(names)}, MinAtar")
        chosen += asked if option != "fast-cpu" else []
    chosen = list(dict.fromkeys(chosen))
    lines, tree = parse(path, root)
    code = "\n".join(lines[tree.body[0].end_lineno if ast.get_docstring(tree) else 0 :])
    if any(family.name == "history" for family in chosen):  # which reads fields of the Env inside
        code += file_of("common.environments.history", root).read_text(encoding="utf-8")
    names = [family.name for family in chosen]
    is_lean = len(names) == 1 and (names == ["gymnax"] or not options)
    is_lean |= names == ["positions", "gymnax"]
    lean_envs = LEAN_ENVS.get(names[-1]) if is_lean else None
    return Choice(root, env_id, chosen, options, code, lean_envs)


def default_env_id(path: str, root: Path) -> str:
    """Return the default of Config's field `env_id`, or "" if there is none."""
    for node in ast.walk(parse(path, root)[1]):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "env_id":
            return str(node.value.value) if isinstance(node.value, ast.Constant) else ""
    return ""


def families_by_pattern(root: Path) -> dict[str, Family]:
    """Return the table of `find_family` in common/envs.py."""
    if not file_of("common.envs", root).exists():
        return {}
    tables = [x for x in ast.walk(parse("common.envs", root)[1]) if isinstance(x, ast.Dict)]
    pairs = [pair for table in tables for pair in zip(table.keys, table.values, strict=True)]
    named = [(strings(key), lazy_family(value)) for key, value in pairs if key]
    return {pattern: family for patterns, family in named if family for pattern in patterns}


def lazy_family(node: ast.AST) -> Family | None:
    """Return the Family that a node `lazy("common.environments.brax_envs", "make_brax_env")` names,
    None for any other node."""
    if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy"):
        return None
    module, make = strings(node)
    return Family(module.rpartition(".")[2].removesuffix("_envs"), module, make)


def families_of(families: dict[str, Family], env_id: str) -> list[Family]:
    """Return the family of an id, and those of the id inside `<id>-history<k>` or the like."""
    family = next((x for pattern, x in families.items() if re.fullmatch(pattern, env_id)), None)
    if family and family.name in WRAPPERS:
        return [family, *families_of(families, env_id.rpartition(f"-{family.name}")[0])]
    return [family] if family else []


def texts_in_marks(root: Path) -> set[str]:
    """Return the texts of all `# copied for TEXT` in the repository."""
    texts = (path.read_text(encoding="utf-8") for path in (root / "common").glob("**/*.py"))
    marks = (MARK.search(line) for text in texts for line in text.splitlines())
    texts = (mark["text"] for mark in marks if mark and mark["rule"] == "for")
    return {text for either in texts for text in either.split(" or ")}


# Reading modules.


def parse(module: str, root: Path) -> tuple[list[str], ast.Module]:
    """Return the lines and the syntax tree of a module; ValueError if it is not Python."""
    path = file_of(module, root)
    source = path.read_text(encoding="utf-8")
    try:
        return source.splitlines(), ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None


def file_of(module: str, root: Path) -> Path:
    """Return the path that a module of the repository has."""
    return root / f"{module.replace('.', '/')}.py"


def is_local(module: str, root: Path) -> bool:
    """Return whether a module is a file or a folder of the repository."""
    path = file_of(module, root)
    return path.exists() or path.with_suffix("").is_dir()


def read_module(module: str, choice: Choice, as_algorithm: bool) -> Module:
    """Read a module definition by definition, or as an algorithm: its body, and its last `if`."""
    lines, tree = parse(module, choice.root)
    docstring = ast.get_docstring(tree, clean=False) or ""
    nodes = tree.body[bool(docstring) :]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in nodes if node not in imports]
    is_main = [isinstance(node, ast.If) and "__main__" in strings(node.test) for node in rest]
    if not as_algorithm:
        rest = [node for node, main in zip(rest, is_main, strict=True) if not main]
        blocks = group_registrations(x for x in rest if not is_left_out(x, lines, choice))
    elif len(rest) > 1 and is_main[-1]:
        blocks = [rest[:-1], rest[-1:]]
    else:
        raise ValueError(f'{module} must end in if __name__ == "__main__": main(Config, make)')
    definitions = [define(module, lines, block, choice) for block in blocks]
    for definition in definitions:
        if not (definition.names or as_algorithm):
            where = f"{module}, line {definition.first}"
            raise ValueError(
                f"{where}: a copy takes imports, definitions and assignments, not this"
            )
    return Module(docstring, [x for y in imports for x in names_of(y, choice.root)], definitions)


def group_registrations(nodes: Iterable[ast.stmt]) -> list[list[ast.stmt]]:
    """Return each definition in a list, with the functions `_` behind it that it registers."""
    blocks = []
    for node in nodes:
        if blocks and getattr(node, "name", "") == "_":
            blocks[-1].append(node)
        else:
            blocks.append([node])
    return blocks


def define(module: str, lines: list[str], nodes: list[ast.stmt], choice: Choice) -> Definition:
    """Return the lines from the first of `nodes` to the last as they go into the copy."""
    first, last = first_line(nodes[0], lines), last_line(nodes[-1])
    imports, dropped, kept, edited = [], set(), set(), list(lines)
    for node in (x for top in nodes for x in ast.walk(top)):
        if is_local_import(node, choice.root):
            imports += names_of(node, choice.root)
        if isinstance(node, ast.stmt) and is_left_out(node, lines, choice):
            dropped |= set(range(first_line(node, lines), last_line(node) + 1))
        if isinstance(node, ast.Dict):
            for key in unwanted_keys(node, choice):
                value = node.values[node.keys.index(key)]
                dropped |= set(range(key.lineno, last_line(value) + 1))
        family = lazy_family(node) or the_only_family(node, choice)
        if isinstance(node, ast.Call) and family and family in choice.families:
            edited[node.lineno - 1] = replace(edited[node.lineno - 1], node, family.make)
            imports.append(Import(family.make, family.module, family.make, None))
        has_body = isinstance(node, ast.FunctionDef | ast.ClassDef)
        body = node.body if has_body and not is_left_out(node, lines, choice) else []
        if body and all(is_left_out(x, lines, choice) for x in body):
            edited[body[0].lineno - 1] = " " * body[0].col_offset + "pass"
            kept.add(body[0].lineno)
    dropped -= kept
    if not module.startswith("algorithms."):
        for node in nodes:
            dropped |= shorten_docstring(node, edited)
    text = "\n".join(keep(edited, range(first, last + 1), dropped))
    names = tuple(name for node in nodes for name in names_bound(node))
    eager = tuple(sorted({x for node in nodes for x in names_evaluated(node)}))
    return Definition(module, names, first, last, text, global_names(text), eager, tuple(imports))


def is_local_import(node: ast.AST, root: Path) -> TypeGuard[ast.Import | ast.ImportFrom]:
    """Return whether a node imports from the repository."""
    if isinstance(node, ast.Import):
        return any(is_local(x.name, root) for x in node.names)
    return isinstance(node, ast.ImportFrom) and (
        node.level > 0 or is_local(node.module or "", root)
    )


def is_left_out(node: ast.stmt, lines: list[str], choice: Choice) -> bool:
    """Return whether a statement is an import from the repository, is marked as not copied, or
    holds nothing but such statements."""
    if is_local_import(node, choice.root) or is_requirement(node):
        return True
    mark = MARK.search(lines[node.lineno - 1])
    if mark and not is_copied(mark, choice):
        return True
    is_block = isinstance(node, ast.If | ast.With | ast.For | ast.While)
    is_block |= getattr(node, "name", "") == "__post_init__"
    inner = [*getattr(node, "body", []), *getattr(node, "orelse", [])] if is_block else []
    return is_block and all(is_left_out(x, lines, choice) for x in inner)


def shorten_docstring(node: ast.stmt, lines: list[str]) -> set[int]:
    """End a docstring in `lines` after its first paragraph; return the lines to drop."""
    if not (isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)):
        return set()
    start, end = node.body[0].lineno, last_line(node.body[0])
    blank = next((n for n in range(start, end) if not lines[n - 1]), None)
    if blank is None:
        return set()
    fits = len(lines[blank - 2]) <= 97
    lines[blank - 2] += '"""' if fits else ""
    return set(range(blank, end + fits))


def is_copied(mark: re.Match, choice: Choice) -> bool:
    """Return whether a statement with such a comment comes along."""
    if mark["rule"] in ("for", "unless"):
        texts = mark["text"].split(" or ")
        found = any(text in choice.code for text in texts)
        for option in choice.options:  # an id, or a family with all its ids
            found |= any(text in option or text.endswith(f"-{option}") for text in texts)
        return found == (mark["rule"] == "for")
    return mark["text"] in choice.options


def is_requirement(node: ast.stmt) -> bool:
    """Return whether a statement is a call of `require`, which checks flags for the runner."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "") == "require"


def unwanted_keys(table: ast.Dict, choice: Choice) -> list[ast.expr]:
    """Return the keys whose entries are left out: other families; and in a table by id, the other
    environments, unless a family that --with names brings them all."""
    entries = [(key, x) for key, x in zip(table.keys, table.values, strict=True) if key]
    if last_line(table) - table.lineno <= len(entries):  # a line does not hold one entry
        return []
    if any(lazy_family(value) for _, value in entries):
        return [key for key, value in entries if lazy_family(value) not in choice.families]
    ids = {x: strings(value) for key, value in entries for x in strings(key)}
    wanted = [x for x in ids if x in (choice.env_id, *choice.options)]
    wanted += [other for x in wanted for other in ids[x] if other in ids]  # what it changes to
    brings_all = {x.name for x in choice.families} & set(choice.options)
    if not wanted or brings_all and any(f"-{name}" in x for name in brings_all for x in ids):
        return []
    return [key for key, _ in entries if not any(x in wanted for x in strings(key))]


def the_only_family(node: ast.AST, choice: Choice) -> Family | None:
    """Return the family that `find_family(env_id)` returns in a copy with a single one."""
    is_search = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "find_family"
    return choice.families[0] if is_search and len(choice.families) == 1 else None


def replace(line: str, node: ast.expr, text: str) -> str:
    """Replace a node that stands in one line."""
    code = line.encode()  # columns count bytes
    return (code[: node.col_offset] + text.encode() + code[node.end_col_offset :]).decode()


def first_line(node: ast.stmt, lines: list[str]) -> int:
    """Return the line on which a statement begins, with its decorators and the comment above it."""
    line = min(top.lineno for top in [node, *getattr(node, "decorator_list", [])])
    while line > 1 and lines[line - 2].lstrip().startswith("#"):
        line -= 1
    return line


def last_line(node: ast.stmt | ast.expr) -> int:
    """Return the line on which a node ends."""
    return node.end_lineno or node.lineno


def keep(lines: list[str], numbers: Iterable[int], dropped: set[int]) -> Iterator[str]:
    """Yield the lines of those numbers, without the dropped ones and the blank lines below them."""
    previous = ""
    for number in numbers:
        line = lines[number - 1]
        is_docstring_over = previous.endswith('"""')
        superfluous = number - 1 in dropped and not line and not is_docstring_over
        after_import = previous.lstrip().startswith(("import ", "from "))
        if number not in dropped and (after_import or not superfluous):
            yield PRAGMA.sub("", MARK.sub("", line))
            previous = line


def strings(node: ast.AST) -> list[str]:
    """Return the string constants in a piece of code."""
    constants = [x.value for x in ast.walk(node) if isinstance(x, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def names_of(node: ast.Import | ast.ImportFrom, root: Path) -> Iterator[Import]:
    """Yield every name that an import binds; ValueError if a copy cannot carry it."""
    module = getattr(node, "module", None) or ""  # none in `from . import name`
    for name, alias in ((x.name, x.asname) for x in node.names):
        if isinstance(node, ast.Import):
            found = Import(alias or name.split(".")[0], name, None, alias)
        else:
            found = Import(alias or name, REPLACED.get(module, module), name, alias)
        if is_local_import(node, root):
            from_file = isinstance(node, ast.ImportFrom) and not node.level
            from_file = from_file and file_of(module, root).exists()
            if not from_file or alias or name == "*":
                raise ValueError(
                    f"{ast.unparse(node)}: a copy needs `from folder.file import name`"
                )
        yield found


def names_bound(node: ast.stmt) -> list[str]:
    """Return the names that a definition or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    names = [x for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def global_names(text: str) -> tuple[str, ...]:
    """Return the names that code takes from its module, or from the builtins."""

    def walk(table):
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    return tuple(sorted(set(walk(symtable.symtable(text, "copy", "exec")))))


def names_evaluated(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement evaluates when it runs: not those in functions' bodies, nor,
    with `from __future__ import annotations`, those in annotations."""
    if isinstance(node, ast.Name):
        yield node.id
    for field, value in ast.iter_fields(node):
        is_body = isinstance(node, ast.FunctionDef | ast.Lambda) and field == "body"
        if not is_body and field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from names_evaluated(child)


# Following names.


def reach(load: Callable, start: list[Definition]) -> list[Definition | Import]:
    """Return what definitions need, with themselves: definitions, and imports from elsewhere."""
    found: list[Definition | Import] = [*start]
    for x in found:  # which grows on the way
        if isinstance(x, Definition):
            targets = dict.fromkeys(y for name in x.uses for y in lookup(load, x, name))
            found += [y for y in targets if y not in found]
    return found


def eager_definitions(load: Callable, definition: Definition) -> list[Definition]:
    """Return the definitions that must precede this one."""
    found = [x for name in definition.eager for x in lookup(load, definition, name)]
    return [x for x in found if isinstance(x, Definition) and x != definition]


def lookup(load: Callable, definition: Definition, name: str) -> list[Definition | Import]:
    """Return what a global name of a definition means; nothing if it is a builtin."""
    local = [x for x in definition.imports if x.bound == name]
    return [y for x in local for y in follow(load, x)] or resolve(load, definition.module, name)


def resolve(load: Callable, module: str, name: str | None) -> list[Definition | Import]:
    """Return what a name means at the top level of a module."""
    own: list[Definition | Import] = [x for x in load(module).definitions if name in x.names]
    imports = [x for x in load(module).imports if x.bound == name]
    return own or [y for x in imports for y in follow(load, x)]


def follow(load: Callable, imported: Import) -> list[Definition | Import]:
    """Return an import from elsewhere as it is; of one from the repository, the definition."""
    try:
        found = resolve(load, imported.module, imported.name)
    except FileNotFoundError:
        return [imported]
    if not found:
        raise ValueError(f"{imported.module} does not define {imported.name}")
    return found


def refuse_clashes(found: Iterable[Definition | Import]) -> None:
    """Raise ValueError if a name would mean two things in one file."""
    meaning = dict.fromkeys(dir(builtins), "Python")
    for x in found:
        if isinstance(x, Definition):
            sources = {name: x.module for name in x.names if name != "_"}
        elif x.name:
            sources = {x.bound: f"{x.module}.{x.name}"}
        else:
            sources = {x.bound: x.module if x.alias else x.bound}  # `import a` is in `import a.b`
        for name, source in sources.items():
            if meaning.setdefault(name, source) != source:
                raise ValueError(
                    f"{name} is in {meaning[name]} and in {source}: rename one of them"
                )


# Writing the copy.


def module_order(load: Callable, modules: Iterable[str]) -> list[str]:
    """Return the modules in an order such that each follows those that it imports."""
    order = []

    def visit(module, importers):
        if module in order or module in importers:
            return
        for imported in dict.fromkeys(x.module for x in load(module).imports):
            try:
                visit(imported, [*importers, module])
            except FileNotFoundError:
                continue  # from elsewhere
        order.append(module)

    for module in modules:
        visit(module, [])
    return order


def sections_of(load: Callable, modules: list[str], definitions: list) -> list[str]:
    """Return the text of each module's definitions, below the first line of its docstring."""
    sections = []
    for module in modules:
        chosen = [x for x in load(module).definitions if x in definitions]
        title = re.split("[,.:]", load(module).docstring.strip() or module)[0]
        text, last = f"# === {title} ===" if len(chosen) > 2 else "", None
        for definition in chosen:
            text += "\n" if last in (None, definition.first - 1) else "\n\n\n"
            text += definition.text
            last = definition.last
        text = text.lstrip("\n")
        sections += [text] if chosen else []
    return sections


def import_block(imports: Iterable[Import]) -> str:
    """Return import statements in the order and the form of ruff's isort."""
    statements = {}  # the names in each; one that is renamed has a statement to itself
    for x in imports:
        statement = x.module, x.name if x.alias else x.name is None, x.alias
        statements.setdefault(statement, []).append(x.name)
    parts = [[], []]
    for (module, _, alias), names in statements.items():
        members = sorted(map(member_key, filter(None, names)))
        text = import_statement(module, [name for *_, name in members], alias)
        is_standard = module.split(".")[0] in sys.stdlib_module_names
        parts[not is_standard].append((members != [], module.lower(), members, text))
    return "\n\n".join("\n".join(text for *_, text in sorted(part)) for part in parts if part)


def member_key(name: str) -> tuple[int, str, str]:
    """Return isort's key of a name in an import: CONSTANTS, Classes, functions."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name.lower(), name


def import_statement(module: str, names: list[str], alias: str | None) -> str:
    """Return `import module` or, with names, `from module import names`; within 100 columns."""
    suffix = f" as {alias}" if alias else ""
    if not names:
        return f"import {module}{suffix}"
    text = f"from {module} import {', '.join(names)}{suffix}"
    lines = "".join(f"    {name}{suffix},\n" for name in names)
    return text if len(text) <= 100 else f"from {module} import (\n{lines})"


def script_header(text: str, root: Path) -> str:
    """Return PEP 723's comment: the packages that `text` imports, as in requirements.txt."""
    nodes = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Import | ast.ImportFrom)]
    modules = {x.module.split(".")[0] for node in nodes for x in names_of(node, root)}
    packages = modules - sys.stdlib_module_names
    packages |= {x for package in packages for x in UNDECLARED.get(package, [])}
    requirements = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {re.split(r"[^\w.-]", line)[0]: line.split("#")[0].strip() for line in requirements}
    named = ", ".join(f'"{wanted.get(package, package)}"' for package in sorted(packages))
    lines = ["/// script", 'requires-python = ">=3.11"', f"dependencies = [{named}]", "///"]
    return "\n".join(f"# {line}" for line in lines) + "\n"


# The command.


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m common.copy", description="Writes an algorithm as one standalone file."
    )
    parser.add_argument("algorithm", help="its name, for example dqn")
    parser.add_argument("destination", help="the file to write, or the folder to write it into")
    parser.add_argument(
        "--with",
        dest="names",
        nargs="+",
        default=[],
        metavar="NAME",
        help="environments to bring along: a family such as brax, or an id",
    )
    parser.add_argument(
        "--fast-cpu", action="store_true", help="bring the random number generator for CPUs along"
    )
    args = parser.parse_args()
    path = args.destination
    if os.path.isdir(path):
        path = os.path.join(path, f"{args.algorithm}.py")
    try:
        options = [*args.names, "fast-cpu"] if args.fast_cpu else args.names
        text = standalone(known(args.algorithm), options)
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
    """Return the name of an algorithm; ValueError if there is none of that name."""
    names = sorted(path.stem for path in (ROOT / "algorithms").glob("[!_]*.py"))
    if algorithm not in names:
        close = difflib.get_close_matches(algorithm, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no algorithm {algorithm!r}; {hint}There are: {', '.join(names)}")
    return algorithm


def refuse(message: str, code: int) -> int:
    """Print why on stderr; return the exit code."""
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
