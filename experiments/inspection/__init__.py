"""A look inside a trained network: filters, units, neighbours, codes, and what it looks at."""
