"""What jobs, sweeps and results are on disk. Terminal, sweeps, MLflow, estimates and reports read it from here."""
