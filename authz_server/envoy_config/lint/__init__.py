"""Find what is unsafe in an Envoy configuration: a table of rules over its typed messages."""
