"""Forms of labeled images other than class folders and plain tables: one module each, found by itself."""
