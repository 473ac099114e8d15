"""The network as live traffic shows it: round trip, jitter, loss and bandwidth, per remote and overall."""
