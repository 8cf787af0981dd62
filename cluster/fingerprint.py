"""What a stage's result depends on in its code: a digest of the modules that it uses.

Comments, docstrings and layout do not count, nor does ``genrec.config``: the values of its fields are in a stage's key
themselves. What only moves work between processes, or shows it, is left out by name: it must not change a result.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FOLLOWED = ("genrec.", "cluster.")
"""Modules under these prefixes are followed from import to import."""

LEFT_OUT = (
    *("genrec.data.artifact_cache", "genrec.data.object_store"),
    *("genrec.config", "genrec.errors", "genrec.progress", "genrec.pages", "genrec.sid.health_page"),
    *("cluster.artifacts", "cluster.data", "cluster.fingerprint", "cluster.pipeline", "cluster.progress"),
    *("cluster.node_check", "cluster.node_files", "cluster.store_folders", "cluster.writer_lease"),
    *("cluster.resources", "cluster.rollouts", "cluster.session", "cluster.stages.plan", "cluster.telemetry"),
    "cluster.trackers",
)


def code_digest(*modules: str) -> str:
    """SHA-256 over the syntax trees of ``modules`` and of every module of ours that they import, directly or not.

    Args:
        modules: dotted names, such as ``"cluster.stages.sft"``.
    """
    total = hashlib.sha256()
    for name in sorted(modules_used(*modules)):
        total.update(f"{name} {_tree_digest(name)}\n".encode())
    return total.hexdigest()


def modules_used(*modules: str) -> set[str]:
    """``modules`` and every module of ours that they import, directly or not."""
    used, waiting = set[str](), list(modules)
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += _imports(name)
    return used


@cache
def _tree(module: str) -> ast.Module | None:
    file = _file(module)
    return None if file is None else ast.parse(file.read_text(encoding="utf-8"))


@cache
def _file(module: str) -> Path | None:
    """The source of ``module``, found without importing the packages that it lies in."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*rest)
    found = (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())
    return next(found, None)


@cache
def _tree_digest(module: str) -> str:
    tree = _tree(module)
    return "" if tree is None else hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Our modules that ``module`` imports anywhere, inside functions too."""
    tree, found = _tree(module), set[str]()
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names if _may_be_package(node.module)),
            }
    return tuple(sorted(name for name in found if _counts(name)))


def _counts(module: str) -> bool:
    left_out = any(module == name or module.startswith(f"{name}.") for name in LEFT_OUT)
    return module.startswith(FOLLOWED) and not left_out


def _may_be_package(module: str) -> bool:
    """Whether names imported from ``module`` may be modules of it."""
    if module.split(".")[0] not in ("genrec", "cluster"):
        return False
    file = _file(module)
    return file is not None and file.name == "__init__.py"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
