"""Run folders: creating them, their manifest and files, and comparing them."""
