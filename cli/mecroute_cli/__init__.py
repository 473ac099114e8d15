"""The command line: parses, calls a library function, renders."""
