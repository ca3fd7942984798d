"""One file a study. Each has `get_config(arg)`, and most have `sweep()`; `config.py` reads them."""
