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
    *("genrec.config", "genrec.errors", "genrec.progress"),
    *("cluster.artifacts", "cluster.data", "cluster.fingerprint", "cluster.pipeline", "cluster.progress"),
    *("cluster.resources", "cluster.rollouts", "cluster.session", "cluster.stages.plan", "cluster.telemetry"),
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
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


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


def _may_be_package(package: str) -> bool:
    """Whether names imported from ``package`` may be modules of it."""
    if package.split(".")[0] not in ("genrec", "cluster"):
        return False
    spec = find_spec(package)
    return spec is not None and spec.submodule_search_locations is not None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
