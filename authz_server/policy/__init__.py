"""Casbin bundles: read, checked, compiled; then only evaluated. Pure but for `bundle.load_*`."""
