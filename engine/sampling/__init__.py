"""Solvers and guidance as tables of coefficients and rows."""
