"""Ablations of long-short alignment for long-context fine-tuning, as one workflow."""
