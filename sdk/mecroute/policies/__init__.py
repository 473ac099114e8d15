"""Policies: how the four factors of a candidate become one score. Built in, configured, or your own code."""

from mecroute.policies.book import PolicyBook
from mecroute.policies.policy import BUILT_IN, Policy, Scorer

__all__ = ["BUILT_IN", "Policy", "PolicyBook", "Scorer"]
