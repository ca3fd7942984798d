"""How a trained network is tested: protocols, posteriors, and what is kept of them."""
