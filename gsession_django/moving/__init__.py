"""Moves sessions from one engine to another: ``manage.py migrate_sessions`` and ``GSESSION["FALLBACK_ENGINE"]``."""
