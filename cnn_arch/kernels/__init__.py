"""What the layers compute where XLA's own programs for a CPU are slow, with hand-written gradients.

On other devices the same formulas run, and XLA fuses them as it likes.
"""
