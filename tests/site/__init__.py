"""What a site has beside its engine: checks, middleware, commands, telemetry."""
