"""Stand-ins for what is large, each passing the same suite as the real thing."""
