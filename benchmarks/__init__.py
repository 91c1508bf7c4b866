"""Speed against straightforward implementations: `python -m benchmarks.NAME`. Not part of the wheel."""
