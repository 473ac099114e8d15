"""Evidence of how good answers are, and what follows from it."""
