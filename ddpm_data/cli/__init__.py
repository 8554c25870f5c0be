"""The commands ``ddpm-data check``, ``verify``, ``report`` and ``compare``."""
