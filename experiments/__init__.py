"""The papers' experiments and what goes beyond them, each made again by `python -m experiments NAME`."""
