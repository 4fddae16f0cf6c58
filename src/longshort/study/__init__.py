"""What is asked: the typed study, its files, and the runs that it resolves to. Knows no torch and no engine."""
