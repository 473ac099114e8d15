"""Cascades: a cheap answer is judged, and kept or escalated, with a bounded rate of errors."""
