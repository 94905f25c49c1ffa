"""Real draft/verify runs: phones draft, servers verify, the tokens are real, time is virtual."""
