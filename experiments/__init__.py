"""Experiments: what is run with the library, and how the embedded model was made."""
