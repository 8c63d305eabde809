"""What an agent's own code imports: its SVID, and links that hand a part of its authority on."""
