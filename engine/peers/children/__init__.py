"""Code that runs inside the peers' own processes. `serve.py` is started as a script by the Python of a side
environment, which has none of this project's packages: the files here import each other by name, and nothing else of
the project."""
