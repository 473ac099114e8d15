"""What the client remembers between runs."""
