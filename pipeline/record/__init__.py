"""The records of jobs, sweeps and results on disk. Terminal, sweeps, MLflow, estimates and reports read them here."""
