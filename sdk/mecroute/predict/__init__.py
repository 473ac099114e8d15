"""What a target would do with a request: latency, quality, cost and complexity, each in its module."""
