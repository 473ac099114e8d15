"""The agents in virtual time: what a policy would do to a trace of requests, against baselines."""
