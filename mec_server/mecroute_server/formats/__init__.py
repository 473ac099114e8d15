"""What APIs other than OpenAI's chat and completions look like: their requests, read, and their answers."""
