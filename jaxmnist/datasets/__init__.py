"""Where data comes from: MNIST by any way it can be had, and drawn digits."""
