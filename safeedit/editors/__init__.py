"""Editors, one method per file; a file's stem is its name in a policy."""
