"""Reward terms: pure functions of a group, weighted by the config and added up.

A term that is constant over its group vanishes wherever groups are centred (A = r - mean, divided or not), so
``diversity`` is each candidate's marginal contribution. Where a group has one hit and nothing else, dividing by the
standard deviation removes the hit's size: ``rank_log`` and ``rank_linear`` need a term that rewards other candidates.
"""

from genrec.learning.rewards.compute import RewardFunction, active_terms, compute_rewards
from genrec.learning.rewards.context import FutureItems, RewardContext, Term
from genrec.learning.rewards.plugins import load_terms
from genrec.learning.rewards.terms import TERMS

__all__ = [
    "TERMS",
    "FutureItems",
    "RewardContext",
    "RewardFunction",
    "Term",
    "active_terms",
    "compute_rewards",
    "load_terms",
]
