"""What a plan will take before it runs: time, memory and disk, from results of this machine and from formulas."""
