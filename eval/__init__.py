"""Evaluation from a checkout: `python -m eval.run --model FOLDER --suite spark`. Models are reached by Auto classes."""
