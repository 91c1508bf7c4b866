"""Training code, run from the checkout: `python -m train.run --recipe NAME --output FOLDER`. Not part of the wheel."""
