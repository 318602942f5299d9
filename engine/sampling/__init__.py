"""Solvers and guidance as tables of coefficients and rows, and the row counts that calls are padded to."""
