"""The core: the interface, the adapter, and sessions."""
