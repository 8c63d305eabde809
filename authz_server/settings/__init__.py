"""The only place where configuration and environment enter."""

from authz_server.settings.load import load_settings
from authz_server.settings.model import Settings

__all__ = ["Settings", "load_settings"]
