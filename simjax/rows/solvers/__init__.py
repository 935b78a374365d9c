"""Batched solvers for rows over one design: one algorithm a file, one common loop, one portfolio."""
