"""How work lives on machines: who owns a folder, how far a job is, what it asks for, how it is stopped."""
