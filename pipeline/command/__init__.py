"""What `python -m pipeline` does: Hydra composes, a job is planned and run, errors are explained."""
