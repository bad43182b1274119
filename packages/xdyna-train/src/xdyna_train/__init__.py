"""A drawn world to train and try X-Dyna in."""
