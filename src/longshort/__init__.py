"""Ablations of long-short alignment for long-context fine-tuning, as one workflow."""

import os

# Figures are files. A notebook hands its own backend on to what is started in it, and the import of matplotlib fails
# where that one is not installed.
os.environ["MPLBACKEND"] = "agg"
