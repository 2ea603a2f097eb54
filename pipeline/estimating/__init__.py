"""Estimates time, memory and disk of a plan, from results of this machine and from formulas."""
