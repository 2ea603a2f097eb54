"""Orchestration: compose, plan, run, track. Knows no torch."""
