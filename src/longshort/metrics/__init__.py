"""What is measured: the catalogue of metrics, and what a study may ask of each. No torch."""
