"""What the router agent is made of: constraints, ranking, balance among equals, sessions, hedges."""
