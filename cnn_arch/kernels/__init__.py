"""What the layers compute, in the form that is fastest on each platform.

A function whose name ends in `_on_cpu`, a barrier, oneDNN's calls and the slices of pooling are for
a CPU, where XLA's own programs are slow. `lax.platform_dependent` chooses as a program is lowered.
Elsewhere XLA fuses plain formulas as it likes, or, of batch normalisation, sums over each example.
"""
