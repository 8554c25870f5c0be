"""Parts of ``ddpm-data check``: scan a dataset, add up what it holds, find duplicates, summarize."""
