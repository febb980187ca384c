"""Moving sessions between engines."""
