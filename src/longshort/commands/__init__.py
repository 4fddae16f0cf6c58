"""What `longshort` and the workflow ask: a module a question."""
