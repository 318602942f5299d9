"""Solvers and guidance as tables of coefficients and rows, what a model's own scheduler stands for, and the row counts
that calls are padded to.
"""
