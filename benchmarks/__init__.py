"""Scripts that measure; each prints machine, versions and date."""
