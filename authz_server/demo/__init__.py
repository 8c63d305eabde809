"""A whole mesh on one machine: trust domain, tools, agents, their Envoys, and the PDP."""
