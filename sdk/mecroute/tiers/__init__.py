"""The three places a request can run, behind one protocol."""
