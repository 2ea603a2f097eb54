"""What a sweep found, as one page: read from job folders and the store, told in tables, plots and files.

folders, results (what is on disk) -> choices, models, speeds, seeds, sharing, verdicts (what it says)
-> study (all of it) -> tables, figures -> writers, page, terminal, logged.
"""
