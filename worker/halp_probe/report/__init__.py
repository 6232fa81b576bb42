"""The report: one page that explains itself, plots and figures, in a folder.

Knows an `Evaluation`, the texts and the pictures of its rows; computes no figure of the table.
"""
