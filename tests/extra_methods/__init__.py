"""What another distribution may hold: one file for each kind of thing, as CONTRIBUTING.md describes them."""
