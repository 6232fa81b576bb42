"""Judging: whether an answer is right, and by which rule. Standard library only."""
