"""Moving sessions from one engine to another: by ``manage.py migrate_sessions``, and on first touch through
``GSESSION["FALLBACK_ENGINE"]``.
"""
