"""Measure the layout of the source tree: `python tests/benchmarks/layout.py [--json] [--list]`.

It prints the figures whose bounds stand in `docs/architecture.md`: names at the top level, modules, modules with a
single importer, import cycles, sizes of files and functions, and how many public docstrings have the sections that
they need. `tests/test_layout.py` holds the bounds.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "covidcxr"
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Layout:
    """What was measured.

    Attributes:
        top_level: Modules and packages directly below the package.
        modules: Number of modules, `__init__.py` files included.
        lines: Lines of all modules.
        single_importer: Modules that exactly one other module imports.
        cycles: Import cycles among modules, each as a list of their names.
        function_lines: Lines of every function.
        code_lines: The same without the docstring.
        long_functions: Functions over 60 lines.
        long_files: Files over 500 lines.
        without_sections: Public functions with arguments whose docstring lacks Args, Returns or Raises.
        without_example: Public classes whose docstring has no example.
        public_functions: Number of public functions with arguments.
        public_classes: Number of public classes.
    """

    top_level: list[str] = field(default_factory=list)
    modules: int = 0
    lines: int = 0
    single_importer: list[str] = field(default_factory=list)
    cycles: list[list[str]] = field(default_factory=list)
    function_lines: list[int] = field(default_factory=list)
    code_lines: list[int] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    long_files: list[str] = field(default_factory=list)
    without_sections: list[str] = field(default_factory=list)
    without_example: list[str] = field(default_factory=list)
    public_functions: int = 0
    public_classes: int = 0

    def summary(self) -> dict[str, float]:
        """Return the figures alone."""
        described = 1 - len(self.without_sections) / max(1, self.public_functions)
        return {
            "top_level": len(self.top_level),
            "modules": self.modules,
            "lines": self.lines,
            "single_importer": len(self.single_importer),
            "cycles": len(self.cycles),
            "function_median": statistics.median(self.function_lines),
            "function_median_without_docstring": statistics.median(self.code_lines),
            "function_p90": statistics.quantiles(self.function_lines, n=10)[-1],
            "function_max": max(self.function_lines),
            "functions_over_60": len(self.long_functions),
            "files_over_500": len(self.long_files),
            "public_functions": self.public_functions,
            "described_share": round(described, 3),
            "public_classes": self.public_classes,
            "classes_without_example": len(self.without_example),
        }


def measure(source: Path = SOURCE) -> Layout:
    """Measure a source tree."""
    trees = {module_name(path, source): (path, path.read_text(encoding="utf-8")) for path in source.rglob("*.py")}
    layout = Layout(modules=len(trees))
    layout.top_level = sorted(
        {name.split(".")[1] for name in trees if name.count(".") and not name.split(".")[1].startswith("_")}
    )
    imports: dict[str, set[str]] = {}
    for name, (_, text) in trees.items():
        tree = ast.parse(text)
        layout.lines += text.count("\n")
        if text.count("\n") > 500:
            layout.long_files.append(f"{name} ({text.count(chr(10))})")
        imports[name] = imported(tree, set(trees), lazy=False)
        measure_functions(tree, name, layout)
        measure_docstrings(tree, name, layout)
    layout.cycles = find_cycles(imports)
    exported = {name: exports(ast.parse(text)) for name, (_, text) in trees.items() if name.endswith("__init__")}
    importers: dict[str, set[str]] = defaultdict(set)
    for name, (_, text) in trees.items():
        for other in imported(ast.parse(text), set(trees), lazy=True, exported=exported) - {name}:
            if not name.endswith("__init__"):
                importers[other].add(name)
    layout.single_importer = sorted(name for name, users in importers.items() if len(users) == 1)
    return layout


def module_name(path: Path, source: Path) -> str:
    """Return the dotted name of a file; a package is named with `.__init__`."""
    return ".".join((source.name, *path.relative_to(source).with_suffix("").parts))


def exports(tree: ast.Module) -> dict[str, str]:
    """Return from which module a package takes each of the names that it offers."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {alias.asname or alias.name: str(node.module) for node in nodes for alias in node.names}


def imported(
    tree: ast.Module, known: set[str], *, lazy: bool, exported: dict[str, dict[str, str]] | None = None
) -> set[str]:
    """Return the modules of the tree that a module imports.

    `lazy` counts imports inside functions too. With `exported`, who takes a name from a package imports the module that
    the package has it from.
    """
    found: set[str] = set()
    for node in ast.walk(tree) if lazy else top_level_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            offered = (exported or {}).get(f"{node.module}.__init__", {})
            names += [offered[alias.name] for alias in node.names if alias.name in offered]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            found |= {candidate for candidate in (name, f"{name}.__init__") if candidate in known}
    return found


def top_level_nodes(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements that run at import; imports for type checkers alone do not."""
    nodes: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        nodes.append(node)
    return nodes


def find_cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return import cycles; one is cut after it was found, so that the next is seen."""
    graph = {name: set(others) - {name} for name, others in imports.items()}
    cycles: list[list[str]] = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            cycle = list(error.args[1])
            cycles.append(cycle)
            graph[cycle[1]].discard(cycle[0])
        else:
            return cycles


def measure_functions(tree: ast.Module, name: str, layout: Layout) -> None:
    """Note the length of every function, decorators left out."""
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            layout.function_lines.append(lines)
            layout.code_lines.append(lines - docstring_lines(node))
            if lines > 60:
                layout.long_functions.append(f"{name}.{node.name} ({lines})")


def docstring_lines(node: FunctionNode) -> int:
    """Return the lines of a function's docstring."""
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def measure_docstrings(tree: ast.Module, name: str, layout: Layout) -> None:
    """Note public functions whose docstring lacks a section, and public classes without an example."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            layout.public_classes += 1
            if "Example" not in (ast.get_docstring(node) or ""):
                layout.without_example.append(f"{name}.{node.name}")
            for method in node.body:
                if isinstance(method, FunctionNode) and not method.name.startswith("_"):
                    measure_docstring(method, f"{name}.{node.name}.{method.name}", layout, method=True)
        elif isinstance(node, FunctionNode) and not node.name.startswith("_"):
            measure_docstring(node, f"{name}.{node.name}", layout, method=False)


def measure_docstring(node: FunctionNode, name: str, layout: Layout, *, method: bool) -> None:
    """Note one function if it has arguments and its docstring lacks Args, Returns (or Yields) or Raises."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    names = [argument.arg for argument in arguments if argument is not None]
    if method and "staticmethod" not in decorators:
        names = names[1:]
    if not names or "overload" in decorators:
        return
    layout.public_functions += 1
    text = ast.get_docstring(node) or ""
    missing = [] if "Args:" in text else ["Args"]
    returned = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn", "Never")
    if returned and "Returns:" not in text and "Yields:" not in text:
        missing.append("Returns")
    if raises_here(node) and "Raises:" not in text:
        missing.append("Raises")
    if missing:
        layout.without_sections.append(f"{name}: {', '.join(missing)}")


def raises_here(node: FunctionNode) -> bool:
    """Whether a function itself raises a new error."""
    return any(isinstance(part, ast.Raise) and part.exc is not None for part in ast.walk(node))


def main() -> None:
    """Print the figures, and with `--list` what they count."""
    parser = argparse.ArgumentParser(description="Measure the layout of the source tree.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="name what the figures count")
    parser.add_argument("--source", type=Path, default=SOURCE, help="the package's folder")
    options = parser.parse_args()
    layout = measure(options.source)
    if options.json:
        print(json.dumps(layout.summary(), indent=2))
        return
    for name, value in layout.summary().items():
        print(f"{name:34} {value:g}")
    if options.list:
        for title in (
            "cycles",
            "single_importer",
            "long_functions",
            "long_files",
            "without_sections",
            "without_example",
        ):
            print(f"\n{title}")
            for entry in getattr(layout, title):
                print(f"  {entry}")


if __name__ == "__main__":
    main()
