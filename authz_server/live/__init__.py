"""Ask live Envoys: each request of a scenario as a real one, with the official client libraries."""
