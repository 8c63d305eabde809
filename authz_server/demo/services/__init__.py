"""What stands behind the demonstration's Envoys: a CRM tool, a data API and a research agent."""
