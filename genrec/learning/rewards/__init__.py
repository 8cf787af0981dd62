"""Reward terms: pure functions of a group, weighted by the config and added up.

A term that is constant over its group vanishes wherever groups are centred (A = r - mean, divided or not), so
diversity is paid as each candidate's marginal contribution, and the rank penalty counts only beside terms that pay
the others.
"""

from genrec.learning.rewards.compute import active_terms, compute_rewards
from genrec.learning.rewards.context import FutureItems, RewardContext, Term
from genrec.learning.rewards.plugins import load_terms
from genrec.learning.rewards.terms import TERMS

__all__ = ["TERMS", "FutureItems", "RewardContext", "Term", "active_terms", "compute_rewards", "load_terms"]
