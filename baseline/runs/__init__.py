"""Run folders: creating them, their manifest, files and timing."""
