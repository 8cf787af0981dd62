"""The trie as public training code has it: a Python dict from a prefix of tokens to the tokens that may follow it."""

from __future__ import annotations

from collections.abc import Sequence

from genrec.policy.prompts import SidTokens
from genrec.sid.catalog import Catalog

AFTER_UNKNOWN = [0]
"""What may follow a prefix that no item has: one token has to be allowed."""


class PythonTrie:
    """The SIDs of a catalogue as tokens of a policy, looked up prefix by prefix."""

    def __init__(self, sids: SidTokens, catalog: Catalog) -> None:
        self._children: dict[tuple[int, ...], list[int]] = {}
        for tokens in sorted(sids.tokens(catalog.codes_NL).tolist()):
            for level in range(catalog.levels):
                children = self._children.setdefault(tuple(tokens[:level]), [])
                if not children or children[-1] != tokens[level]:
                    children.append(tokens[level])

    def allowed(self, prefix: Sequence[int]) -> list[int]:
        """The tokens that may follow the first tokens of a SID, ascending."""
        return self._children.get(tuple(prefix), AFTER_UNKNOWN)
