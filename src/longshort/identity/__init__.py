"""What makes two runs the same: what was asked (spec), and by which code (code)."""
