"""The rules of the house, as tests."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("genrec", "cluster", "workflows")
PACKAGES = (*PRODUCT, "benchmarks")
ORDER = {
    name: place
    for place, names in enumerate(
        (
            "errors config types threads progress metrics seeds",
            "data",
            "pages",
            "sid",
            "baselines",
            "policy",
            "inference",
            "learning",
            "evaluation",
        )
    )
    for name in names.split()
}
LAST = len(ORDER)  # genrec/__init__.py stands above the rest


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def packages_of(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def test_imports_run_from_workflows_to_cluster_to_genrec_and_nobody_uses_benchmarks() -> None:
    for file in files("genrec"):
        assert not packages_of(file) & {"ray", "cluster", "workflows", "benchmarks"}, file
    for file in files("cluster"):
        assert not packages_of(file) & {"workflows", "benchmarks"}, file
    for file in files("workflows"):
        assert "benchmarks" not in packages_of(file), file
    for file in files("benchmarks"):
        assert "workflows" not in packages_of(file), file


def test_inside_genrec_a_module_imports_only_from_the_packages_before_it() -> None:
    for file in files("genrec"):
        place = file.relative_to(ROOT / "genrec").parts[0].removesuffix(".py")
        own = ORDER.get(place, LAST)
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "genrec" and len(parts) > 1:
                assert ORDER.get(parts[1], LAST) <= own, f"{file} imports {name}"


def test_no_circle_of_imports() -> None:
    modules = {str(file.relative_to(ROOT).with_suffix("")).replace("/", "."): file for file in files(*PACKAGES)}
    uses = {name: {other for other in imports(file) if other in modules} - {name} for name, file in modules.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in uses[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_only_the_command_line_reads_arguments_and_the_method_reads_no_environment() -> None:
    for file in files("genrec", "cluster"):
        assert not imports(file) & {"argparse", "click"}, file
    for file in files("genrec"):
        assert "os.environ" not in file.read_text(encoding="utf-8"), file


def test_the_method_and_the_cluster_log_and_do_not_print() -> None:
    for file in files("genrec", "cluster", "benchmarks"):
        for node in ast.walk(tree(file)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called, f"{file}:{getattr(node, 'lineno', 0)} prints"


def test_nothing_is_unpickled_and_no_text_is_evaluated() -> None:
    for file in files(*PACKAGES):
        assert not imports(file) & {"pickle", "dill", "joblib"}, file
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), file
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), file


def test_a_variant_of_a_config_goes_through_its_validators() -> None:
    for file in files(*PACKAGES, "tests"):
        if file.name != Path(__file__).name:
            assert "model_copy" not in file.read_text(encoding="utf-8"), f"{file}: use Section.replace"


def test_no_class_name_is_used_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in files(*PACKAGES):
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(str(file.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


# A stage's file has the name of its stage: in cluster/stages what runs it, in workflows its verb, below the method.
STAGE_NAMES = {"prepare", "embed", "assign", "sft", "grpo", "tune", "refit", "evaluate"}
SAME_IN_ROOMS = {"stages", "losses", "rewards", "tasks", "decode", "trainer", "context", "generate", "batch", "bench"}


def test_a_module_name_is_used_once_in_a_package() -> None:
    for package in PACKAGES:
        places: dict[str, list[str]] = defaultdict(list)
        for file in files(package):
            if file.name != "__init__.py":
                places[file.stem].append(str(file.relative_to(ROOT)))
        twice = {name: found for name, found in places.items() if len(found) > 1}
        assert set(twice) <= STAGE_NAMES | SAME_IN_ROOMS, twice


def test_no_parameter_of_the_cluster_is_typed_any() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}({argument.arg})"
        for file in files("cluster")
        for node in functions(file)
        for argument in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)
        if argument.annotation is not None and ast.unparse(argument.annotation) == "Any"
    ]
    assert not found, found


def test_every_parameter_is_typed() -> None:
    for file in files(*PACKAGES):
        for node in functions(file):
            arguments = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]
            bare = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
            assert not bare, f"{file}:{node.lineno} {node.name}{bare}"


SHAPED = re.compile(r"_x?[A-Z]?[A-Za-z0-9]{0,5}$")
SAYS_SHAPE = re.compile(r"\([A-Z0-9…]|shape")


def test_a_public_function_on_arrays_says_their_shapes() -> None:
    """Where a parameter is an array, its name ends in its shape, or the docstring gives shapes."""
    arrays = ("Tensor", "NDArray", "FloatArray", "IntArray", "np.ndarray", "Ints", "Floats", "Longs", "Bools")
    silent: list[str] = []
    for file in files("genrec"):
        classes = [node for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef)]
        private = {
            one.name
            for own in classes
            if own.name.startswith("_")
            for one in own.body
            if isinstance(one, ast.FunctionDef)
        }
        for node in functions(file):
            if node.name in private or node.name.startswith("_"):
                continue
            text = ast.get_docstring(node) or ""
            for argument in (*node.args.args, *node.args.kwonlyargs):
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                is_array = kind.removesuffix(" | None") in arrays
                if is_array and not SHAPED.search(argument.arg) and not SAYS_SHAPE.search(text):
                    silent.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}({argument.arg}: {kind})")
    assert not silent, silent


@pytest.mark.parametrize("suffix", [".py", ".md"])
def test_lines_have_at_most_120_characters(suffix: str) -> None:
    places = files(*PACKAGES, "tests") if suffix == ".py" else [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for file in places:
        in_code = False
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            in_code ^= line.startswith("```")
            table_or_link = suffix == ".md" and (in_code or line.startswith("|") or "](" in line)
            assert len(line) <= 120 or table_or_link, f"{file.relative_to(ROOT)}:{number} has {len(line)} characters"


def test_a_workflow_is_at_most_sixty_lines() -> None:
    for file in files("workflows"):
        if file.name not in ("cli.py", "commands.py", "help_rows.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 60, file


def test_the_project_speaks_of_no_machine_of_its_makers() -> None:
    for file in [
        *files(*PACKAGES, "tests"),
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("configs/**/*.yaml"),
    ]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|root|home/\w+)/\w", text), file
