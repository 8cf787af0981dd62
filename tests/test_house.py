"""The rules of the house, as tests."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = {
    name: place
    for place, names in enumerate(
        (
            "errors config types threads progress metrics",
            "data",
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
LAST = 8  # genrec/__init__.py stands above the rest


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_imports_run_from_workflows_to_cluster_to_genrec() -> None:
    for file in files("genrec"):
        assert not {name for name in imports(file) if name.split(".")[0] in ("ray", "cluster", "workflows")}, file
    for file in files("cluster"):
        assert not {name for name in imports(file) if name.split(".")[0] == "workflows"}, file


def test_inside_genrec_a_module_imports_only_from_the_left() -> None:
    for file in files("genrec"):
        place = file.relative_to(ROOT / "genrec").parts[0].removesuffix(".py")
        own = ORDER.get(place, LAST)
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "genrec" and len(parts) > 1:
                assert ORDER.get(parts[1], LAST) <= own, f"{file} imports {name}"


def test_only_the_command_line_reads_arguments_and_the_environment_stays_outside_the_method() -> None:
    for file in files("genrec"):
        assert not imports(file) & {"argparse", "os.environ", "click"}, file
        assert "os.environ" not in file.read_text(), file


def test_nothing_is_unpickled_and_no_text_is_evaluated() -> None:
    for folder in ("genrec", "cluster", "workflows"):
        for file in files(folder):
            assert not imports(file) & {"pickle", "dill", "joblib"}, file
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec"), file
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), file


def test_a_workflow_is_at_most_sixty_lines() -> None:
    for file in files("workflows"):
        if file.name not in ("cli.py",):
            assert len(file.read_text().splitlines()) <= 60, file
