"""What `mecroute doctor` looks at: what is installed, and whether what is configured works."""
