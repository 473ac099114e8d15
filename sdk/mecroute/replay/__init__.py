"""Replays recorded traffic under another weighting, offline."""
