"""What ``ddpm-data check`` is made of."""
