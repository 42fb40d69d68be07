"""The command line: parses, calls, prints. Nothing is computed here."""
