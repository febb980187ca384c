"""The parts of a site around its engine: checks, middleware, commands, telemetry."""
