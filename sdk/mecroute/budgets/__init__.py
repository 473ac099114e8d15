"""Budgets: reserved before a call, settled after it, shared by every process on the machine."""
