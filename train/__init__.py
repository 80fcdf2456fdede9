"""Training: the adapter (``python -m train.adapter``) and the embedded model (``python -m train.joey``)."""
