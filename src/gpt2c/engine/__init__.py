"""The engines that run a model, compiled and NumPy's, and the choice between them."""
