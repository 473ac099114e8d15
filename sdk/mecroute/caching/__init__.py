"""Remembered answers: what makes two requests the same, what means the same, and where answers are kept."""
