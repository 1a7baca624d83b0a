"""Variables of any array library: values with names, gradients of some of their rows, initial values, and autograd."""
