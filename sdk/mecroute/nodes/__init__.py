"""MEC nodes as a client sees them: what a node reports of itself, and watching it."""
